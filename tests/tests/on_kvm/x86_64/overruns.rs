//! Guests whose stores overrun small dirty rings, where KVM emulates them: in ring 0 on a host
//! without help of the processor. Other threads want the processors meanwhile, so that a
//! harvest is held up at every moment.
//!
//! `TRACKING_SECONDS` says how long each runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration_tests::harness::Test;
use kvm_accel::{DirtyTracking, VcpuThread};
use machines::guest::{DATA, programs};
use ram_block::DirtyClient;

use crate::on_kvm::machine::{Machine, tracked_by, wait_until};
use crate::on_kvm::tracking::{Mirror, Random, duration, seed};

pub const TESTS: &[Test] = &[
    ("two_processors_that_overrun_their_rings_lose_nothing_unnoticed", two_processors),
    ("a_string_instruction_that_overruns_its_ring_loses_nothing_unnoticed", string_instruction),
    ("rings_that_are_overrun_while_logs_start_and_stop_lose_nothing", logs_start_and_stop),
];

const PAGE: u64 = 4096;
/// Pages that each processor stores to: more than a ring has entries, and few enough to be
/// compared often.
const PAGES: u64 = 3000;
const RAM: u64 = DATA + (4 + 2 * PAGES) * PAGE;

/// Threads that do something over and over, until this is dropped.
struct Busy(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Busy {
    fn start(threads: usize, work: impl Fn() + Clone + Send + 'static) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let repeat = |_| {
            let (done, work) = (done.clone(), work.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    work();
                }
            })
        };
        let threads = (0..threads).map(repeat).collect();
        Self(done, threads)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Harvests all the time, and compares now and then, while the guests stand still.
fn check(
    entries: u32,
    start: impl FnOnce(&Machine) -> Vec<VcpuThread>,
    mut between: impl FnMut(&Machine, u64),
) {
    tracked_by(DirtyTracking::Ring { entries }, || {
        let machine = Machine::new(RAM);
        let mut mirror = Mirror::start(&machine, DirtyClient::MIGRATION);
        let guests = start(&machine);
        let busy = Busy::start(4, std::hint::spin_loop);
        let (memory, ram) = (machine.memory.clone(), machine.ram);
        let syncs = Busy::start(1, move || memory.sync_dirty_log(ram).unwrap());
        let deadline = Instant::now() + duration();
        let (mut harvests, mut random) = (0, Random(seed()));
        // What is lost shows until the guest stores there again: so look often.
        while Instant::now() < deadline || harvests < 20 {
            harvests += 1;
            between(&machine, harvests);
            // Harvests that come when a ring has been full, and such that come at any time.
            if random.below(8) == 0 {
                let full = machine.vm.dirty_log_stats().ring_full;
                wait_until("a full ring", || machine.vm.dirty_log_stats().ring_full > full);
            }
            machine.memory.sync_dirty_log(machine.ram).unwrap();
            mirror.harvest(&machine, 0..machine.block.pages());
            if harvests % 2 == 0 {
                let still = machine.vm.pause(Duration::from_secs(60)).unwrap();
                mirror.check(&machine, harvests);
                drop(still);
            }
        }
        drop((busy, syncs));
        for guest in guests {
            assert!(!guest.is_finished(), "{:?}", guest.join());
            guest.stop().unwrap();
        }
        mirror.check(&machine, harvests);
        let stats = machine.vm.dirty_log_stats();
        println!(
            "ring of {entries}: {harvests} harvests, {} pages, full {} times, {} losses",
            stats.pages, stats.ring_full, stats.ring_overruns
        );
    });
}

/// In ring 0, each on pages of its own.
fn two_processors() {
    let start = |machine: &Machine| {
        let guest = |from: u64, beat: u64| {
            let (from, to) = (DATA + from * PAGE, DATA + (from + PAGES) * PAGE);
            let arguments = [from, to, PAGE, DATA + beat * PAGE];
            machine.start_privileged(&programs::increment_pages(), &arguments)
        };
        vec![guest(2, 0), guest(2 + PAGES, 1)]
    };
    check(1024, start, |_, _| ());
}

fn string_instruction() {
    let start = |machine: &Machine| {
        let arguments = [DATA + 2 * PAGE, DATA + (2 + PAGES) * PAGE, 0, DATA];
        vec![machine.start_privileged(&programs::fill_memory(), &arguments)]
    };
    check(2048, start, |_, _| ());
}

fn logs_start_and_stop() {
    let start = |machine: &Machine| {
        let arguments = [DATA + 2 * PAGE, DATA + (2 + PAGES) * PAGE, PAGE, DATA];
        vec![machine.start_privileged(&programs::increment_pages(), &arguments)]
    };
    let mut vga = None;
    check(1024, start, |machine, harvests| {
        let claim = || machine.memory.claim_log(machine.ram, DirtyClient::VGA).unwrap();
        vga = (harvests % 2 == 0).then(claim);
    });
}
