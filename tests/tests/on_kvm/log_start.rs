//! What the first harvest of a log gives.

use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, KvmConfig};
use machines::guest::DATA;
use ram_block::DirtyClient;

use super::machine::{Machine, Obedient};

pub const TESTS: &[Test] = &[(
    "the_first_harvest_gives_all_pages_or_what_was_written_as_asked",
    the_first_harvest_gives_all_pages_or_what_was_written_as_asked,
)];

const VGA: DirtyClient = DirtyClient::VGA;

fn the_first_harvest_gives_all_pages_or_what_was_written_as_asked() {
    for initially_set in [true, false] {
        let config = KvmConfig { initially_set, ..KvmConfig::default() };
        let machine = Machine::with_config(16 << 20, config);
        let chosen = machine.vm.dirty_tracking();
        let manual = chosen.tracking == DirtyTracking::ManualProtect;
        if !manual || !initially_set {
            assert!(!chosen.initially_set, "{chosen:?}");
        }
        let all_at_first = chosen.initially_set;
        let page = machine.block.page_size().bytes();
        let pages = [1000, 1001, 1063].map(|number| DATA / page + number);
        let addresses = pages.map(|number| number * page);
        let mut guest = Obedient::new(&machine);
        guest.store(&machine, 1, &addresses);
        // The second start is that of a log that was on and off.
        for start in 0..2 {
            let mut log = machine.memory.claim_log(machine.ram, VGA).unwrap();
            guest.store(&machine, 2 + start, &addresses[1..]);
            let mut take = || {
                let all = 0..machine.block.len();
                log.snapshot_and_clear(all).unwrap().commit()
            };
            let first = take();
            if all_at_first {
                assert_eq!(first.count(), machine.block.pages());
            } else {
                // The list of addresses, and what the guest's processor writes for itself.
                assert!(!first.is_dirty(pages[0]) && first.count() < 64, "{first:?}");
                assert!(pages[1..].iter().all(|page| first.is_dirty(*page)), "{first:?}");
            }
            // From then on all are exact.
            guest.store(&machine, 4 + start, &addresses[..1]);
            let next = take();
            assert!(next.is_dirty(pages[0]) && !next.is_dirty(pages[1]), "{next:?}");
            assert!(next.count() < 64, "{next:?}");
        }
    }
}
