//! Readers beside a writer, on the processors at hand: no value is read after it was dropped, and
//! each is dropped soon after it was replaced; without the barrier, one is read too late.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::hazard::cell::HazardCell;
use crate::hazard::readers::Readers;
use crate::hazard::record::Record;
use crate::hazard::thread::{barrier, fence_if_needed, light_fence};
use crate::sys::membarrier;

/// A value, and a note of its end that stays.
struct Value(&'static AtomicBool);

impl Value {
    fn new() -> Self {
        Self(Box::leak(Box::new(AtomicBool::new(false))))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn deadline() -> Duration {
    let scale = std::env::var("TEST_DEADLINE_SCALE").ok().and_then(|scale| scale.parse().ok());
    Duration::from_secs(20) * scale.unwrap_or(1)
}

#[test]
fn no_value_is_read_after_its_drop_and_each_is_dropped_soon() {
    let (cell, stop) = (HazardCell::new(Arc::new(Value::new())), AtomicBool::new(false));
    let reads = AtomicUsize::new(0);
    thread::scope(|scope| {
        for reader in 0..3 {
            let (cell, stop, reads) = (&cell, &stop, &reads);
            scope.spawn(move || {
                let mut count = 0usize;
                while !stop.load(Relaxed) {
                    let value = cell.load();
                    // Some of them for long.
                    for _ in 0..count % 61 * reader {
                        assert!(!value.0.load(Relaxed), "read after its drop");
                    }
                    let within = cell.load();
                    assert!(!within.0.load(Relaxed), "read after its drop, within a read");
                    drop(within);
                    assert!(!value.0.load(Relaxed), "read after its drop");
                    count += 1;
                }
                reads.fetch_add(count, Relaxed);
            });
        }
        let (begin, mut replaced, mut is_kept) = (Instant::now(), 0, false);
        while !is_kept && begin.elapsed() < Duration::from_secs(2) {
            let former = cell.load().0;
            for _ in 0..=replaced % 3 {
                cell.set(Arc::new(Value::new()));
            }
            drop(HazardCell::reclaim([&cell]));
            let wait = Instant::now();
            while !is_kept && !former.load(Acquire) {
                is_kept = wait.elapsed() >= deadline();
                thread::yield_now();
            }
            replaced += 1;
        }
        stop.store(true, Relaxed);
        assert!(!is_kept, "value {replaced} is not dropped");
    });
    assert!(reads.into_inner() > 0);
}

/// A line of the cache that both threads use.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicUsize);

fn wait_for(line: &Line, round: usize) {
    let mut spins = 0u32;
    while line.0.load(Acquire) < round {
        spins += 1;
        if spins % 1024 == 0 {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Replaces a value and reads it at the same moment, round by round, until one is read too late or
/// for `time`. Values are never freed here, so that the reader can see their end. With `fences`,
/// the reader passes some of its own.
fn race(time: Duration, fences: bool, barrier: impl Fn() + Sync) -> bool {
    const LAST: usize = usize::MAX;
    let ended: [Line; 2] = Default::default();
    let at = |round: usize| std::ptr::without_provenance_mut::<()>(1 + round % 2);
    let current = AtomicPtr::new(at(0));
    let record: &'static Record = Box::leak(Box::new(Record::new(fences)));
    let slot = &record.slots()[0];
    // As a cell does.
    let fence = || if fences { fence_if_needed(slot) } else { light_fence() };
    let readers = Mutex::new(Readers::<&'static Record, usize>::new());
    readers.lock().unwrap().add(record);
    // Lines that the writer has: the reader's stores to them wait, and those after them.
    let slow: [Line; 16] = Default::default();
    let slow = |round: usize| slow.iter().take(round / 97 % 17);
    let [begun, done]: [Line; 2] = Default::default();
    let late = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                wait_for(&begun, round + 1);
                if begun.0.load(Acquire) == LAST {
                    break;
                }
                slow(round).for_each(|line| line.0.store(round, Relaxed));
                let announced = slot.announce(|| current.load(Acquire), fence);
                if let Ok(value) = announced {
                    let is_late = (0..32).any(|_| ended[value.addr() - 1].0.load(Acquire) != 0);
                    late.fetch_or(is_late, Relaxed);
                }
                let (Ok(value) | Err(value)) = announced;
                if slot.leave(light_fence) && slot.is_waited_for_after(fence) {
                    drop(readers.lock().unwrap().left_by(slot, value.addr(), &barrier));
                }
                done.0.store(round + 1, Release);
            }
        });
        let end = Instant::now() + time;
        for round in 0.. {
            if late.load(Relaxed) || Instant::now() >= end {
                break;
            }
            ended[at(round + 1).addr() - 1].0.store(0, Relaxed);
            for line in slow(round) {
                line.0.fetch_add(1, Relaxed);
            }
            begun.0.store(round + 1, Release);
            // So that the two meet at many distances.
            (0..round % 97).for_each(|_| std::hint::spin_loop());
            let former = current.swap(at(round + 1), SeqCst).addr();
            barrier();
            let unread = readers.lock().unwrap().retire(vec![(former, former)], &barrier);
            unread.into_iter().for_each(|value| ended[value - 1].0.store(1, Release));
            wait_for(&done, round + 1);
        }
        begun.0.store(LAST, Release);
    });
    late.into_inner()
}

/// One race at a time: two would have four threads wait for two processors.
static RACING: Mutex<()> = Mutex::new(());

#[test]
fn a_writer_that_passes_a_barrier_ends_no_value_that_is_read() {
    let _racing = RACING.lock().unwrap_or_else(PoisonError::into_inner);
    if !membarrier::available() {
        println!("skipped: there is no membarrier");
        return;
    }
    assert!(
        !race(Duration::from_secs(2), false, || assert!(barrier())),
        "a value was read too late"
    );
}

/// As on hosts without such a barrier.
#[test]
fn a_writer_and_a_reader_that_fence_end_no_value_that_is_read() {
    let _racing = RACING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_late = race(Duration::from_secs(2), true, || fence(SeqCst));
    assert!(!is_late, "a value was read too late");
}

/// Wrong: nothing makes the reader's announcement come before the writer looks for it.
#[test]
fn the_race_sees_a_writer_without_barrier() {
    let _racing = RACING.lock().unwrap_or_else(PoisonError::into_inner);
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: there is one processor");
        return;
    }
    assert!(race(Duration::from_secs(300), false, || ()), "no value was read too late");
}
