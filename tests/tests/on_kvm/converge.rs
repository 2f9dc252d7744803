//! Guests that write faster than the link carries, and are limited by their rings.

use std::time::Duration;

use integration_tests::harness::Test;
use kvm_accel::DirtyTracking;
use machines::guest::{DATA, programs};
use migration_ram::{DirtyLimit, Migrated, Precopy, SendError, receive};
use ram_block::RamBlock;

use super::machine::{Machine, seconds, tracked_by, wait_until};

/// Of rings, and of what has none.
pub const TESTS: &[Test] = &[
    ("a_guest_that_is_limited_converges", a_guest_that_is_limited_converges),
    ("what_cannot_be_limited_is_not_migrated", what_cannot_be_limited_is_not_migrated),
];

const RAM: u64 = 40 << 20;
/// What the guest writes over and over: a tenth of a second for a guest alone on its host.
const LEN: u64 = 24 << 20;
/// Bytes a second that the link carries: the guest has seconds to write all of its pages in
/// each round, so that it does on a busy host, too.
const LINK: u64 = 12 << 20;

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

fn precopy(machine: &Machine) -> Precopy {
    Precopy::new(machine.memory.clone())
        .bandwidth(LINK)
        .downtime(Duration::from_millis(100))
        .must_converge(true)
}

fn a_guest_that_is_limited_converges() {
    for entries in [4096, 65_536] {
        tracked_by(DirtyTracking::Ring { entries }, || {
            let machine = Machine::new(RAM);
            let page = machine.block.page_size().bytes();
            let arguments = [DATA + page, DATA + LEN, page, DATA];
            let guest = machine.start(&programs::increment_pages(), &arguments);
            let passes = || machine.words::<1>(DATA)[0];
            wait_until("the first pass", || passes() > 0);
            let pause = || Ok(machine.vm.pause(seconds(5))?);

            let free = precopy(&machine).max_rounds(2);
            let refused = free.run(&mut Vec::new(), pause, |_| ()).unwrap_err();
            assert!(matches!(refused, SendError::NotConverging { rounds: 2, .. }), "{refused}");

            let vm = machine.vm.clone();
            let limited = precopy(&machine)
                .dirty_limit(DirtyLimit::default(), move |bytes| Ok(vm.set_dirty_limit(bytes)?));
            let mut stream = Vec::new();
            let mut seen = false;
            let migrated = limited.run(&mut stream, pause, |now| {
                assert_eq!(machine.vm.dirty_limit().is_some(), now.dirty_limit.is_some());
                seen |= now.dirty_limit.is_some();
            });
            let Migrated { stats, paused, .. } = migrated.unwrap();
            let limit = stats.dirty_limit;
            println!("ring of {entries}: {limit:?} bytes/s, {} rounds", stats.rounds.len());
            assert!(stats.converged && limit.is_some() && seen, "{stats:?}");
            let waited = machine.vm.dirty_log_stats().throttled;
            assert!(waited > Duration::ZERO, "nobody waited for the limit");
            let twin = RamBlock::anonymous("ram", RAM).unwrap();
            receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
            assert!(contents(&machine.block) == contents(&twin), "source and destination differ");
            drop(paused);

            // It goes on, as fast as it likes.
            assert_eq!(machine.vm.dirty_limit(), None);
            let before = passes();
            wait_until("the guest to go on", || passes() > before);
            guest.stop().unwrap();
        });
    }
}

fn what_cannot_be_limited_is_not_migrated() {
    for tracking in [DirtyTracking::Bitmap, DirtyTracking::ManualProtect] {
        tracked_by(tracking, || {
            let machine = Machine::new(1 << 20);
            let vm = machine.vm.clone();
            let limited = precopy(&machine)
                .dirty_limit(DirtyLimit::default(), move |bytes| Ok(vm.set_dirty_limit(bytes)?));
            let mut stream = Vec::new();
            let refused = limited.run(&mut stream, || Ok(()), |_| ()).unwrap_err();
            assert!(matches!(refused, SendError::DirtyLimit(_)), "{refused}");
            assert!(stream.is_empty());
        });
    }
}
