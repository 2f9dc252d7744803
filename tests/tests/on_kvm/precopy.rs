//! Live migration of a guest that never stops writing.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use integration_tests::harness::Test;
use kvm_accel::PauseGuard;
use machines::guest::{DATA, programs};
use migration_ram::{DeviceError, Migrated, Precopy, Progress, SendError, WriteTransport, receive};
use ram_block::{DirtyClient, RamBlock, SendList, TransferError};

use super::machine::{Machine, Recorder, seconds, wait_until};

pub const TESTS: &[Test] = &[
    (
        "a_guest_that_increments_100_mib_arrives_whole",
        a_guest_that_increments_100_mib_arrives_whole,
    ),
    ("a_guest_outlives_a_migration_that_fails", a_guest_outlives_a_migration_that_fails),
    ("slots_that_go_in_mid_migration_lose_nothing", slots_that_go_in_mid_migration_lose_nothing),
    ("a_block_that_goes_in_mid_migration_fails_it", a_block_that_goes_in_mid_migration_fails_it),
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

/// A connection of a machine that has a device which writes memory whenever something was sent,
/// until the machine stands still: a round finds something written however short it is, whether a
/// guest had a processor meanwhile or not.
struct Busy<O> {
    connection: O,
    block: Arc<RamBlock>,
    stands_still: Arc<AtomicBool>,
    sent: u64,
}

impl<O: WriteTransport> Busy<O> {
    fn new(connection: O, machine: &Machine) -> Self {
        Self { connection, block: machine.block.clone(), stands_still: Arc::default(), sent: 0 }
    }

    /// Pauses the machine, its device included.
    fn pause(
        &self,
        machine: &Machine,
    ) -> impl FnOnce() -> Result<PauseGuard, DeviceError> + use<O> {
        let (vm, stands_still) = (machine.vm.clone(), self.stands_still.clone());
        move || {
            stands_still.store(true, Ordering::Relaxed); // the sending thread calls both
            Ok(vm.pause(seconds(5))?)
        }
    }
}

impl<O: WriteTransport> WriteTransport for Busy<O> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        self.connection.send(list)?;
        self.sent += 1;
        if !self.stands_still.load(Ordering::Relaxed) {
            let at = self.block.len() - self.block.page_size().bytes();
            self.block.write(at, &self.sent.to_le_bytes()).unwrap();
        }
        Ok(())
    }
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

    let (output, input) = UnixStream::pair().unwrap();
    let twin = RamBlock::anonymous("ram", RAM).unwrap();
    let receiver = std::thread::spawn({
        let twin = twin.clone();
        move || receive(&mut &input, &[twin])
    });
    let mut busy = Busy::new(output, &machine);
    let pause = busy.pause(&machine);
    let precopy = Precopy::new(machine.memory.clone()).downtime(Duration::ZERO).max_rounds(5);
    let goes_on = |now: &Progress| {
        if now.round_ended.is_some_and(|round| !round.paused) {
            let beat = machine.words::<1>(DATA);
            wait_until("the guest to go on", || machine.words::<1>(DATA) != beat);
        }
    };
    let Migrated { stats, paused, .. } = precopy.run(&mut busy, pause, goes_on).unwrap();
    let received = receiver.join().unwrap().unwrap();
    assert_eq!(received.bytes, stats.bytes);
    assert_eq!(stats.rounds.len(), 6);
    // While everything is sent the guest writes its pages, and hardly a page more is written:
    // what a log starts with, which may be all, is not taken for written.
    let written = LEN / page;
    let dirtied = stats.rounds[0].dirtied;
    assert!((1..=written + 64).contains(&dirtied), "round 0 finds {dirtied} of {written} pages");
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
    let pause = || Ok(machine.vm.pause(seconds(5))?);
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

/// Slots are split, joined and deleted while rounds are sent, also by a window on a block that
/// is seen elsewhere: what the guest wrote through them arrives.
fn slots_that_go_in_mid_migration_lose_nothing() {
    let machine = Machine::new(16 << 20);
    let page = machine.block.page_size().bytes();
    // The guest writes RAM, and the second block through the window only.
    let far = RamBlock::anonymous("far", 200 * page).unwrap();
    let (window, hole) = (0x4000_0000, DATA + 700 * page);
    let (alias, overlay) = machine
        .memory
        .transaction(|map| {
            let region = map.ram("far", far.clone())?;
            map.add_subregion(machine.system, 0x8000_0000, region)?;
            let alias = map.alias("window", region, 0, u128::from(far.len()))?;
            map.add_subregion(machine.system, window, alias)?;
            let overlay = map.mmio("overlay", u128::from(page), Recorder::new(0))?;
            map.add_subregion_overlap(machine.system, hole, overlay, 1)?;
            map.set_enabled(overlay, false)?;
            Ok((alias, overlay))
        })
        .unwrap();
    let near =
        machine.start(&programs::increment_pages(), &[DATA + page, DATA + 1000 * page, page, DATA]);
    let beat = DATA + 3000 * page;
    let through =
        machine.start(&programs::increment_pages(), &[window, window + far.len(), page, beat]);
    let passes = || machine.words::<1>(beat)[0];
    wait_until("a pass through the window", || passes() > 0);

    let precopy = Precopy::new(machine.memory.clone()).downtime(Duration::ZERO).max_rounds(8);
    let mut stream = Busy::new(Vec::new(), &machine);
    let pause = stream.pause(&machine);
    let Migrated { paused, stats, .. } = precopy
        .run(&mut stream, pause, |now| {
            let Some(round) = now.round_ended.filter(|round| !round.paused) else {
                return;
            };
            // Slots go with what was written since the sync that has just been.
            let before = passes();
            let open = machine.memory.transaction(|map| map.set_enabled(alias, true));
            open.unwrap();
            wait_until("a pass through the window", || passes() > before + 1);
            machine
                .memory
                .transaction(|map| {
                    map.set_enabled(overlay, round.round % 2 == 0)?;
                    map.set_enabled(alias, round.round % 3 == 0)
                })
                .unwrap();
        })
        .unwrap();
    assert!(stats.rounds.len() > 6, "{stats:?}");
    let twins = [("ram", machine.block.len()), ("far", far.len())];
    let twins = twins.map(|(id, len)| RamBlock::anonymous(id, len).unwrap());
    receive(&mut stream.connection.as_slice(), &twins).unwrap();
    for (here, there) in [&machine.block, &far].into_iter().zip(&twins) {
        assert!(contents(here) == contents(there), "{} differs", here.id());
    }
    drop(paused);
    for guest in [near, through] {
        assert!(!guest.is_finished(), "{:?}", guest.join());
        guest.stop().unwrap();
    }
}

/// Nobody logs a block that the machine does not see: the migration says so.
fn a_block_that_goes_in_mid_migration_fails_it() {
    let machine = Machine::new(RAM);
    let page = machine.block.page_size().bytes();
    let region = machine
        .memory
        .transaction(|map| {
            let region = map.ram("far", RamBlock::anonymous("far", 100 * page)?)?;
            map.add_subregion(machine.system, 0x4000_0000, region)?;
            Ok(region)
        })
        .unwrap();
    let arguments = [DATA + page, DATA + 1000 * page, page, DATA];
    let guest = machine.start(&programs::increment_pages(), &arguments);
    let precopy = Precopy::new(machine.memory.clone()).downtime(Duration::ZERO).max_rounds(5);
    let pause = || Ok(machine.vm.pause(seconds(5))?);
    let mut gone = false;
    let result = precopy.run(&mut Vec::new(), pause, |_| {
        if !std::mem::replace(&mut gone, true) {
            machine
                .memory
                .transaction(|map| {
                    map.del_subregion(region)?;
                    map.remove(region)
                })
                .unwrap();
        }
    });
    assert!(result.is_err(), "a migration without one of its blocks");
    assert!(machine.vm.slots().iter().all(|slot| !slot.logged));
    let beat = machine.words::<1>(DATA);
    wait_until("the guest to go on", || machine.words::<1>(DATA) != beat);
    guest.stop().unwrap();
}
