//! Checkpoints of real guests, with other clients of the log beside them.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use integration_tests::harness::Test;
use kvm_accel::{RollBack, Vcpu};
use machines::guest::{DATA, TABLE_PAGES, port, programs};
use machines::kick_port::KickPort;
use machines::vcpu_device::VcpuDevice;
use memory_region::GlobalLogClaim;
use migration_ram::{Checkpoints, Precopy, receive};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use ram_block::RamBlock;
use ram_block::vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

#[cfg(target_arch = "aarch64")]
use super::aarch64::states as arch;
use super::machine::{Machine, seconds};
#[cfg(target_arch = "x86_64")]
use super::x86_64::registers as arch;

pub const TESTS: &[Test] = &[
    ("resets_put_all_of_a_machine_back", resets_put_all_of_a_machine_back),
    ("a_guest_that_is_put_back_does_the_same_again", a_guest_that_is_put_back_does_the_same_again),
    ("a_reset_does_not_hear_itself", a_reset_does_not_hear_itself),
    ("a_live_checkpoint_is_one_instant", a_live_checkpoint_is_one_instant),
];

const RAM: u64 = (1 << 20) + (512 << 10);
/// Where it says that it is done.
const PORT: u16 = 0x510;
/// Where the guest finds how many stores it makes, and the word that it stores.
const COUNT: u64 = DATA;
/// Where it finds the addresses.
const LIST: u64 = DATA + 0x1000;
/// What it may store to.
const FIRST: u64 = DATA + 0x10_000;

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// Whether the block's bytes are these.
fn holds(block: &RamBlock, bytes: &[u8]) -> bool {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(bytes.len(), 0);
        block.read(0, buffer).unwrap();
        buffer == bytes
    })
}

/// A machine that is fuzzed: each case runs from a checkpoint to a halt.
struct Fuzzed {
    machine: Machine,
    vcpu: Arc<Mutex<Vcpu>>,
    random: TestRng,
    /// Held while anything may write: whoever has it finds the machine paused.
    still: Arc<Still>,
}

/// A lock for two, of whom neither takes it again before the other one who waits.
#[derive(Default)]
struct Still {
    lock: Mutex<()>,
    is_wanted: AtomicBool,
}

impl Still {
    /// For the migration.
    fn wait(&self) -> MutexGuard<'_, ()> {
        self.is_wanted.store(true, Ordering::Relaxed);
        let held = self.lock.lock().unwrap();
        self.is_wanted.store(false, Ordering::Relaxed);
        held
    }

    /// For the machine, which takes it again and again.
    fn take(&self) -> MutexGuard<'_, ()> {
        while self.is_wanted.load(Ordering::Relaxed) {
            thread::yield_now(); // it is free, and the other one takes it
        }
        self.lock.lock().unwrap()
    }
}

impl Fuzzed {
    fn new() -> Self {
        let machine = Machine::new(RAM);
        let code = programs::store_and_report_sum();
        let vcpu = machine.privileged(&code, &[LIST, COUNT, port(PORT)]);
        // Where a guest that halts is in KVM, it writes to a port.
        machine
            .memory
            .transaction(|map| {
                let end = map.mmio("end", 1, Arc::new(KickPort(vcpu.kicker())))?;
                map.add_subregion(machine.ports, PORT.into(), end)
            })
            .unwrap();
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        Self { machine, vcpu: Arc::new(Mutex::new(vcpu)), random, still: Arc::default() }
    }

    fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        self.vcpu.lock().unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn place(&mut self) -> u64 {
        FIRST + self.below(RAM - FIRST - 8)
    }

    /// The guest stores to some pages, and so do the monitor and a device.
    fn run_case(&mut self) {
        let count = self.below(100);
        let word = self.random.next_u64();
        let list: Vec<u8> = (0..count).flat_map(|_| self.place().to_le_bytes()).collect();
        let block = self.machine.block.clone();
        block.write(COUNT, &[count.to_le_bytes(), word.to_le_bytes()].concat()).unwrap();
        block.write(LIST, &list).unwrap();
        assert_eq!(self.vcpu().run().unwrap(), arch::REPORTED);
        arch::change_vectors(&self.vcpu(), word);
        let place = self.place();
        self.machine.space.write(place, &word.to_be_bytes()).unwrap(); // a device's DMA
        let place = self.place();
        let view = self.machine.space.memory();
        view.write_slice(&word.to_ne_bytes(), GuestAddress(place)).unwrap(); // vm-memory's
    }
}

/// Another client of the same log, that mirrors memory as a display does.
struct Mirror {
    log: GlobalLogClaim,
    copy: Vec<u8>,
}

impl Mirror {
    fn follow(&mut self, block: &Arc<RamBlock>) -> u64 {
        self.log.sync().unwrap();
        let (mut count, copy) = (0, &mut self.copy);
        let visited = self.log.visit_runs(block, 0, |pages| {
            let page = block.page_size().bytes();
            let bytes = pages.start * page..pages.end * page;
            let range = usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
            block.read(bytes.start, &mut copy[range]).unwrap();
            count += pages.end - pages.start;
            ControlFlow::<()>::Continue(())
        });
        assert!(visited.unwrap().is_continue());
        assert!(holds(block, copy));
        count
    }
}

/// Migrates the machine again and again until it is told to stop; returns how often.
fn migrate_all_along(fuzzed: &Fuzzed, stop: &Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    let (memory, block) = (fuzzed.machine.memory.clone(), fuzzed.machine.block.clone());
    let (still, stop) = (fuzzed.still.clone(), stop.clone());
    thread::spawn(move || {
        let mut migrated = 0;
        while !stop.load(Ordering::Relaxed) {
            let (mut stream, mut at_the_end) = (Vec::new(), Vec::new());
            let pause = || {
                let paused = still.wait();
                at_the_end = contents(&block);
                Ok(paused)
            };
            let moved = Precopy::new(memory.clone()).run(&mut stream, pause, |_| ()).unwrap();
            drop(moved); // it runs on
            let twin = RamBlock::anonymous("ram", RAM).unwrap();
            receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
            assert!(holds(&twin, &at_the_end));
            migrated += 1;
        }
        migrated
    })
}

/// How many cases: `RESET_CASES`, for an emulated host.
fn cases() -> u64 {
    std::env::var("RESET_CASES").map_or(10_000, |cases| cases.parse().unwrap())
}

/// 10,000 cases from two checkpoints: memory and registers are each time what they were, while the
/// machine is migrated all along and a third client follows.
fn resets_put_all_of_a_machine_back() {
    let now = cases() / 5;
    for (when, cases) in [(RollBack::Now, now), (RollBack::WithNextRun, cases() - now)] {
        let mut fuzzed = Fuzzed::new();
        let block = fuzzed.machine.block.clone();
        let device = Arc::new(VcpuDevice::new(fuzzed.vcpu.clone(), when));
        let mut checkpoints = Checkpoints::new(&fuzzed.machine.memory, vec![device]).unwrap();
        let log = fuzzed.machine.memory.claim_global_log("mirror").unwrap();
        let mut mirror = Mirror { log, copy: contents(&block) };
        let stop = Arc::new(AtomicBool::new(false));
        let migrations = migrate_all_along(&fuzzed, &stop);

        // What a vCPU is, is settled by its first run.
        let first = {
            let still = fuzzed.still.clone();
            let _still = still.take();
            fuzzed.run_case();
            (checkpoints.take().unwrap(), contents(&block), arch::registers(&fuzzed.vcpu()))
        };
        let still = fuzzed.still.clone();
        let second = {
            let _still = still.take();
            fuzzed.run_case();
            (checkpoints.take().unwrap(), contents(&block), arch::registers(&fuzzed.vcpu()))
        };
        assert!(first.1 != second.1 && first.2 != second.2);

        for case in 0..cases {
            let _still = still.take();
            fuzzed.run_case();
            if case % 5 == 0 {
                assert!(!holds(&block, &second.1));
            }
            let (back_to, stats) = match case % 100 {
                7 => (&first, checkpoints.restore(first.0).unwrap()),
                8 => (&second, checkpoints.restore(second.0).unwrap()),
                _ => {
                    let to = if checkpoints.current() == Some(first.0) { &first } else { &second };
                    (to, checkpoints.reset().unwrap())
                }
            };
            assert!(stats.pages >= 1, "{stats:?}");
            assert!(holds(&block, &back_to.1), "case {case}");
            if case % 8 == 0 {
                assert_eq!(arch::registers(&fuzzed.vcpu()), back_to.2, "case {case}");
            }
            if case % 20 == 0 {
                mirror.follow(&block);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(migrations.join().unwrap() as u64 > cases / 1000);
    }
}

/// However registers go back, the guest runs on with them.
fn a_guest_that_is_put_back_does_the_same_again() {
    let ends = [RollBack::Now, RollBack::WithNextRun].map(|when| {
        let fuzzed = Fuzzed::new();
        let block = &fuzzed.machine.block;
        let device = Arc::new(VcpuDevice::new(fuzzed.vcpu.clone(), when));
        let mut checkpoints = Checkpoints::new(&fuzzed.machine.memory, vec![device]).unwrap();
        block.write(LIST, &FIRST.to_le_bytes()).unwrap();
        block.write(COUNT, &[1, 7].map(u64::to_le_bytes).concat()).unwrap();
        checkpoints.take().unwrap();
        let mut sums = Vec::new();
        let ends = [1, 2, 3].map(|_| {
            // One of its registers is a sum over all that it has done.
            assert_eq!(fuzzed.vcpu().run().unwrap(), arch::REPORTED);
            let end = (arch::registers(&fuzzed.vcpu()), contents(block));
            sums.push(programs::sum(&fuzzed.vcpu()));
            checkpoints.reset().unwrap();
            end
        });
        assert!(ends[0] == ends[1] && ends[0] == ends[2]);
        assert_eq!(sums, [7, 7, 7]);
        ends[0].0.clone()
    });
    assert_eq!(ends[0], ends[1]);
}

/// What a reset writes is no news to the next one, and is to another client.
fn a_reset_does_not_hear_itself() {
    let mut fuzzed = Fuzzed::new();
    let block = fuzzed.machine.block.clone();
    let device = Arc::new(VcpuDevice::new(fuzzed.vcpu.clone(), RollBack::WithNextRun));
    let mut checkpoints = Checkpoints::new(&fuzzed.machine.memory, vec![device]).unwrap();
    let log = fuzzed.machine.memory.claim_global_log("mirror").unwrap();
    let mut mirror = Mirror { log, copy: contents(&block) };
    checkpoints.take().unwrap();
    fuzzed.run_case();
    checkpoints.take().unwrap();
    for _ in 0..200 {
        fuzzed.run_case();
        let stats = checkpoints.reset().unwrap();
        assert!(stats.pages >= 1, "{stats:?}");
        let again = checkpoints.reset().unwrap();
        #[allow(clippy::absurd_extreme_comparisons)] // on arm64 no table is written
        let is_silent = again.pages <= TABLE_PAGES;
        assert!(is_silent, "{again:?}");
        let heard = mirror.follow(&block);
        assert!(heard >= stats.pages, "{heard} of {stats:?}");
    }
}

/// A guest that writes all the time is paused for a moment, in which its memory is what is taken.
fn a_live_checkpoint_is_one_instant() {
    let machine = Machine::new(64 << 20);
    let (page, pages) = (machine.block.page_size().bytes(), 1024);
    let code = programs::increment_random_pages();
    let arguments = [DATA + page, pages - 1, page, DATA, 100];
    let guest = machine.start(&code, &arguments);
    let mut checkpoints = Checkpoints::new(&machine.memory, Vec::new()).unwrap();
    let mut taken = Vec::new();
    for _ in 0..10 {
        let mut instant = Vec::new();
        let pause = || {
            let paused = machine.vm.pause(seconds(5))?;
            instant = contents(&machine.block);
            Ok(paused)
        };
        let (checkpoint, stats) = checkpoints.take_live(pause).unwrap();
        assert!(stats.rounds > 1, "{stats:?}");
        taken.push((checkpoint, instant));
    }
    guest.stop().unwrap();
    for (checkpoint, instant) in taken.iter().rev() {
        checkpoints.restore(*checkpoint).unwrap();
        assert!(holds(&machine.block, instant));
    }
}
