//! Live migration of a guest that never stops writing.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use integration_tests::guest::{DATA, programs};
use integration_tests::harness::Test;
use migration_ram::{Migrated, Precopy, SendError, receive};
use ram_block::{DirtyClient, RamBlock};

use super::machine::{Machine, wait_until};

pub const TESTS: &[Test] = &[
    (
        "a_guest_that_increments_100_mib_arrives_whole",
        a_guest_that_increments_100_mib_arrives_whole,
    ),
    ("a_guest_outlives_a_migration_that_fails", a_guest_outlives_a_migration_that_fails),
];

const RAM: u64 = 110 << 20;
const LEN: u64 = 100 << 20;

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// The first bytes of the pages that the guest increments.
fn counters(bytes: &[u8], page: u64) -> Vec<u8> {
    let pages = (DATA + page..DATA + LEN).step_by(usize::try_from(page).unwrap());
    pages.map(|at| bytes[usize::try_from(at).unwrap()]).collect()
}

/// All counters are equal but for one step of -1, where the guest is now.
fn check_pattern(counters: &[u8]) {
    let steps = counters.windows(2).filter(|pair| pair[0] != pair[1]);
    let steps: Vec<_> = steps.map(|pair| pair[0].wrapping_sub(pair[1])).collect();
    assert!(steps.is_empty() || steps == [1], "steps {steps:?}");
}

fn a_guest_that_increments_100_mib_arrives_whole() {
    let machine = Machine::new(RAM);
    let page = machine.block.page_size().bytes();
    let guest = machine.start(&programs::increment_pages(), &[DATA + page, DATA + LEN, page, DATA]);
    let last = DATA + LEN - page;
    wait_until("the first pass", || {
        let mut byte = [0];
        machine.block.read(last, &mut byte).unwrap();
        byte[0] > 1
    });

    let (mut output, input) = UnixStream::pair().unwrap();
    let twin = RamBlock::anonymous("ram", RAM).unwrap();
    let receiver = std::thread::spawn({
        let twin = twin.clone();
        move || receive(input, &[twin])
    });
    // No guest that writes natively lets itself be caught up with at this rate: the
    // rounds are what is limited.
    let precopy = Precopy::new(machine.memory.clone()).downtime(Duration::ZERO).max_rounds(5);
    let pause = || Ok(machine.vm.pause(Duration::from_secs(5))?);
    let Migrated { stats, paused } = precopy.run(&mut output, pause, |_| ()).unwrap();
    let received = receiver.join().unwrap().unwrap();
    assert_eq!(received.bytes, stats.bytes);
    assert_eq!(stats.rounds.len(), 6);
    assert!(stats.rounds.last().unwrap().pages > 0, "the guest wrote nothing: {stats:?}");

    let (here, there) = (contents(&machine.block), contents(&twin));
    assert!(here == there, "source and destination differ");
    let counters = counters(&there, page);
    check_pattern(&counters);
    drop(paused);

    // The source goes on, unlogged.
    assert!(!machine.block.dirty().enabled().contains(DirtyClient::MIGRATION));
    let mut before = [0];
    machine.block.read(last, &mut before).unwrap();
    wait_until("the source to go on", || {
        let mut byte = [0];
        machine.block.read(last, &mut byte).unwrap();
        byte != before
    });
    guest.stop().unwrap();
}

fn a_guest_outlives_a_migration_that_fails() {
    let machine = Machine::new(RAM);
    let page = machine.block.page_size().bytes();
    let arguments = [DATA + page, DATA + 1000 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    let (mut output, input) = UnixStream::pair().unwrap();
    drop(input);
    let precopy = Precopy::new(machine.memory.clone());
    let pause = || Ok(machine.vm.pause(Duration::from_secs(5))?);
    let error = precopy.run(&mut output, pause, |_| ()).unwrap_err();
    assert!(matches!(error, SendError::Write { .. }), "{error}");
    assert!(machine.vm.slots().iter().all(|slot| !slot.logged));
    let beat = machine.words::<1>(DATA);
    wait_until("the guest to go on", || machine.words::<1>(DATA) != beat);

    let mut stream = Vec::new();
    let Migrated { paused, .. } = precopy.run(&mut stream, pause, |_| ()).unwrap();
    let twin = RamBlock::anonymous("ram", RAM).unwrap();
    receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
    assert!(contents(&machine.block) == contents(&twin), "source and destination differ");
    drop(paused);
    guest.stop().unwrap();
}
