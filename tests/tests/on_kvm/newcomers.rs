//! Clients that are switched on while another client's report waits to be cleared.

use std::any::Any;

use integration_tests::harness::Test;
use machines::guest::DATA;
use memory_region::{GlobalLogClaim, MemoryMap};
use ram_block::DirtyClient;

use super::machine::{Machine, Obedient};

pub const TESTS: &[Test] = &[(
    "a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store",
    a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store,
)];

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// Claims the migration's log; it is on as long as the claim is kept.
type Claim = fn(&Machine) -> Box<dyn Any>;

/// VGA logs through the map, and clears a report that it got before the migration's log was
/// claimed, in each of several places.
fn a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store() {
    let places: [(&str, Claim); 4] = [
        ("the map", |machine| Box::new(machine.memory.claim_log(machine.ram, MIGRATION).unwrap())),
        ("another map", |machine| {
            let other = MemoryMap::new();
            let ram = other.transaction(|map| map.ram("ram", machine.block.clone())).unwrap();
            Box::new(other.claim_log(ram, MIGRATION).unwrap())
        }),
        ("the block", |machine| Box::new(machine.block.dirty().claim(MIGRATION).unwrap())),
        ("the block, again", |machine| {
            drop(machine.block.dirty().claim(MIGRATION).unwrap());
            Box::new(machine.block.dirty().claim(MIGRATION).unwrap())
        }),
    ];
    for (place, claim) in places {
        let machine = Machine::new(16 << 20);
        let page = machine.block.page_size().bytes();
        let address = DATA + 1000 * page;
        let mut vga = machine.memory.claim_global_log(VGA).unwrap();
        let mut guest = Obedient::new(&machine);
        guest.store(&machine, 1, &[address]);
        let take = |vga: &mut GlobalLogClaim| {
            vga.snapshot_and_clear(&machine.block, 0..machine.block.len()).unwrap().commit()
        };
        for _ in 0..2 {
            vga.sync().unwrap();
            take(&mut vga);
        }
        guest.store(&machine, 2, &[address]);
        machine.memory.sync_dirty_log(machine.ram).unwrap();
        let _migration = claim(&machine);
        let read = || {
            let mut byte = [0];
            machine.block.read(address, &mut byte).unwrap();
            byte
        };
        assert_eq!(read(), [2], "what the newcomer mirrors");
        guest.store(&machine, 3, &[address]);
        take(&mut vga); // without a sync, and so of the report from before
        vga.sync().unwrap();
        take(&mut vga);
        machine.memory.sync_dirty_log(machine.ram).unwrap();
        assert!(machine.block.dirty().is_dirty(MIGRATION, address / page), "{place}: lost");
        assert_eq!(read(), [3]);
    }
}
