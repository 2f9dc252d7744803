//! Marks that are left out, on the processors at hand: a store that waits in a store buffer while
//! its mark is left out is read by the harvest that takes the mark, because of the barrier.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence, fence};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::membarrier;

/// A line of the cache that both threads use.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

#[derive(Default)]
struct Shared {
    /// Lines that the harvester has: the writer's stores to them wait, and those after them.
    slow: [Line; 16],
    page: Line,
    writer: Line,
    harvester: Line,
}

fn wait_for(line: &Line, round: u64) {
    let mut spins = 0u32;
    while line.0.load(Acquire) < round {
        spins += 1;
        if spins % 1024 == 0 {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// The lines of a round: sometimes many, sometimes none.
fn slow(shared: &Shared, round: u64) -> impl Iterator<Item = &Line> {
    shared.slow.iter().take(index(round / 97 % 17))
}

/// One race at a time: two would have four threads wait for two processors.
static RACING: Mutex<()> = Mutex::new(());

/// Stores and harvests at the same moment, round by round, until one is lost or for `time`, and
/// until a mark was left out, for which both threads have to run at once: five minutes at most. In
/// how many rounds one was, and whether a store was lost.
fn race(time: Duration, pass_barrier: impl Fn()) -> (u64, bool) {
    let _racing = RACING.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = Shared::default();
    let marks = Marks::<AtomicU64>::default();
    marks.reserve(64).unwrap();
    let left_out = AtomicU64::new(0);
    const LAST: u64 = u64::MAX;
    let lost = thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                wait_for(&shared.harvester, round);
                if shared.harvester.0.load(Acquire) == LAST {
                    break;
                }
                slow(&shared, round).for_each(|line| line.0.store(round, Relaxed));
                shared.page.0.store(round, Relaxed); // L0
                compiler_fence(SeqCst);
                if marks.is_settled(0) {
                    left_out.fetch_add(1, Relaxed);
                } else {
                    marks.mark(0);
                }
                shared.writer.0.store(round, Release);
            }
        });
        let (end, deadline) = (Instant::now() + time, Instant::now() + Duration::from_secs(300));
        let mut lost = false;
        for round in 1.. {
            let now = Instant::now();
            let is_done = now >= end && left_out.load(Relaxed) > 0;
            if lost || is_done || now >= deadline {
                break;
            }
            marks.mark(0);
            for line in slow(&shared, round) {
                line.0.fetch_add(1, Relaxed);
            }
            shared.page.0.load(Relaxed);
            shared.harvester.0.store(round, Release);
            // So that the two meet at many distances.
            (0..round % 97).for_each(|_| std::hint::spin_loop());
            let mut taken = 0;
            marks.take(&(0..64), |_, bits| taken |= bits);
            pass_barrier();
            let read = shared.page.0.load(Acquire);
            wait_for(&shared.writer, round);
            let mut rest = 0;
            marks.take(&(0..64), |_, bits| rest |= bits);
            lost = read != round && rest == 0;
        }
        shared.harvester.0.store(LAST, Release);
        lost
    });
    (left_out.into_inner(), lost)
}

#[test]
fn a_store_whose_mark_is_left_out_is_read() {
    if !membarrier::available() {
        println!("skipped: there is no membarrier");
        return;
    }
    let (left_out, lost) = race(Duration::from_secs(2), || {
        assert!(membarrier::every_thread());
        fence(SeqCst);
    });
    assert!(!lost, "a store was lost");
    assert!(left_out > 0, "no mark was left out");
}

/// Wrong: nothing makes the writer's store come before the read.
#[test]
fn the_race_sees_a_harvest_without_barrier() {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: there is one processor");
        return;
    }
    let (left_out, lost) = race(Duration::from_secs(300), || ());
    assert!(lost, "no store was lost, in {left_out} rounds in which a mark was left out");
}
