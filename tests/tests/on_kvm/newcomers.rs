//! Clients that are switched on while another client's report waits to be cleared.

use integration_tests::harness::Test;
use machines::guest::DATA;
use memory_region::MemoryMap;
use ram_block::DirtyClient;

use super::machine::{Machine, Obedient};

pub const TESTS: &[Test] = &[(
    "a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store",
    a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store,
)];

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

/// Switches the migration's client on, at the machine or through another map.
type SwitchOn = fn(&Machine, &MemoryMap);

/// VGA logs through the map, and clears a report that it got before the migration's client
/// was switched on, in each of several places.
fn a_client_that_comes_between_a_sync_and_a_clear_gets_every_later_store() {
    let places: [(&str, SwitchOn); 4] = [
        ("the map", |machine, _| machine.memory.set_log(machine.ram, MIGRATION, true).unwrap()),
        ("another map", |machine, other| {
            let ram = other.transaction(|map| map.ram("ram", machine.block.clone())).unwrap();
            other.set_log(ram, MIGRATION, true).unwrap();
        }),
        ("the block", |machine, _| machine.block.dirty().enable(MIGRATION).unwrap()),
        ("the block, again", |machine, _| {
            machine.block.dirty().enable(MIGRATION).unwrap();
            machine.block.dirty().disable(MIGRATION).unwrap();
            machine.block.dirty().enable(MIGRATION).unwrap();
        }),
    ];
    for (place, comes) in places {
        let machine = Machine::new(16 << 20);
        let page = machine.block.page_size().bytes();
        let address = DATA + 1000 * page;
        machine.memory.set_log(machine.ram, VGA, true).unwrap();
        let mut guest = Obedient::new(&machine);
        guest.store(&machine, 1, &[address]);
        let take = || {
            let pages = 0..machine.block.len();
            machine.memory.snapshot_and_clear(machine.ram, VGA, pages).unwrap().commit()
        };
        take();
        take();
        guest.store(&machine, 2, &[address]);
        machine.memory.sync_dirty_log(machine.ram).unwrap();
        let other = MemoryMap::new();
        comes(&machine, &other);
        let read = || {
            let mut byte = [0];
            machine.block.read(address, &mut byte).unwrap();
            byte
        };
        assert_eq!(read(), [2], "what the newcomer mirrors");
        guest.store(&machine, 3, &[address]);
        machine.memory.log_clear(&machine.block, 0..machine.block.len()).unwrap();
        take();
        machine.memory.sync_dirty_log(machine.ram).unwrap();
        assert!(machine.block.dirty().is_dirty(MIGRATION, address / page), "{place}: lost");
        assert_eq!(read(), [3]);
    }
}
