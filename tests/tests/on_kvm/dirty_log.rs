//! From a guest's store to its clients' bitmaps.

use std::sync::Arc;

use integration_tests::kvm::KvmTest;
use ram_block::{DirtyClient, RamBlock};

use super::machine::Machine;

pub const TESTS: &[KvmTest] = &[(
    "a_guests_pages_reach_every_client_that_is_on",
    a_guests_pages_reach_every_client_that_is_on,
)];

const VGA: DirtyClient = DirtyClient::VGA;
const CODE: DirtyClient = DirtyClient::CODE;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// The pages of `block` that `client` has, without taking them.
fn dirty(block: &RamBlock, client: DirtyClient) -> Vec<u64> {
    (0..block.pages()).filter(|page| block.dirty().is_dirty(client, *page)).collect()
}

fn take(machine: &Machine, client: DirtyClient, block: &Arc<RamBlock>) -> Vec<u64> {
    machine.memory.sync_all_dirty_logs().unwrap();
    let harvest = block.dirty().snapshot_and_clear(client, 0..block.pages()).unwrap();
    harvest.commit().pages().collect()
}

fn a_guests_pages_reach_every_client_that_is_on() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    machine.memory.set_log(machine.ram, VGA, true).unwrap();
    machine.memory.set_global_log(MIGRATION, true).unwrap();
    machine.store(1, &[]); // what booting writes, and the page tables' own bits
    take(&machine, VGA, &machine.block);
    take(&machine, MIGRATION, &machine.block);

    let pages = [1000, 1001, 1063, 1064, 2047, 4095];
    machine.store(7, &pages.map(|number| number * page + number));
    assert_eq!(dirty(&machine.block, VGA).iter().filter(|page| **page >= 1000).count(), 0);
    machine.memory.sync_dirty_log(machine.ram).unwrap();
    for client in [VGA, MIGRATION] {
        let found: Vec<_> =
            dirty(&machine.block, client).into_iter().filter(|page| *page >= 1000).collect();
        assert_eq!(found, pages, "{client}");
    }
    assert_eq!(dirty(&machine.block, CODE), [0; 0]);
    for number in pages {
        let mut byte = [0];
        machine.block.read(number * page + number, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }

    let seen = machine.memory.snapshot_and_clear(machine.ram, VGA, 0..16 << 20).unwrap().commit();
    assert!(pages.iter().all(|page| seen.is_dirty(*page)));
    assert_eq!(dirty(&machine.block, VGA), [0; 0]);
    assert!(pages.iter().all(|page| machine.block.dirty().is_dirty(MIGRATION, *page)));
}
