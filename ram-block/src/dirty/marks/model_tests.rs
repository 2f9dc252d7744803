//! The argument of the parent module, checked by loom, with what is wrong kept to show that the
//! model can see the loss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;

type ModelMarks = Marks<AtomicU64>;

fn new() -> ModelMarks {
    let marks = ModelMarks::default();
    marks.reserve(64).unwrap();
    marks
}

fn reserved(marks: &ModelMarks) -> &Reserved<AtomicU64> {
    marks.reserved.get().unwrap()
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    with_preemptions(4, body);
}

fn with_preemptions(count: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(count);
    builder.check(body);
}

fn is_caught(body: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(body))).is_err()
}

/// A barrier that the harvester makes the writer pass: an interrupt, which meets the writer between
/// any two of its steps, and by which each knows all that the other did before.
#[derive(Default)]
struct Barrier {
    wanted: AtomicU64,
    passed: AtomicU64,
}

impl Barrier {
    /// The writer's side: the interrupt, if it comes now.
    fn meet(&self) {
        if self.wanted.load(Acquire) != 0 {
            self.passed.store(1, Release);
        }
    }

    /// The writer is done, or runs no more: there is nobody to be interrupted.
    fn leave(&self) {
        self.passed.store(1, Release);
    }

    fn pass(&self) {
        self.wanted.store(1, Release);
        while self.passed.load(Acquire) == 0 {
            thread::yield_now();
        }
    }
}

/// How a mark, a mark that is left out, and a distribution are done.
#[derive(Clone, Copy)]
struct Steps {
    is_settled: fn(&ModelMarks, &dyn Fn()) -> bool,
    mark: fn(&ModelMarks, u64),
    take: fn(&ModelMarks) -> u64,
    has_barrier: bool,
}

fn take(marks: &ModelMarks) -> u64 {
    let mut all = 0;
    marks.take(&(0..64), |_, bits| all |= bits);
    all
}

const RIGHT: Steps = Steps {
    is_settled: |marks, between| marks.is_settled_with(0, between),
    mark: |marks, page| marks.mark(page),
    take,
    has_barrier: true,
};

/// A page that is marked is stored to while a harvest takes its bit and reads it: what is stored is
/// read, or the page is in the next harvest.
fn a_store_is_read_or_marked(steps: Steps) {
    let page = Arc::new(AtomicU64::new(0));
    let marks = Arc::new(new());
    let barrier = Arc::new(Barrier::default());
    (steps.mark)(&marks, 0);
    let writer = {
        let (page, marks, barrier) = (page.clone(), marks.clone(), barrier.clone());
        thread::spawn(move || {
            barrier.meet();
            page.store(1, Relaxed);
            barrier.meet();
            if !(steps.is_settled)(&marks, &|| barrier.meet()) {
                (steps.mark)(&marks, 0);
            }
            barrier.leave();
        })
    };
    assert_eq!((steps.take)(&marks), 1);
    if steps.has_barrier {
        barrier.pass();
    }
    let read = page.load(Relaxed);
    writer.join().unwrap();
    assert!(read == 1 || (steps.take)(&marks) == 1, "a store was lost");
}

#[test]
fn a_store_to_a_marked_page_is_read_or_marked_again() {
    model(|| a_store_is_read_or_marked(RIGHT));
}

#[test]
fn the_model_sees_a_harvest_without_barrier() {
    let wrong = Steps { has_barrier: false, ..RIGHT };
    assert!(is_caught(move || a_store_is_read_or_marked(wrong)));
}

/// Two writers mark one page, of which one finds it settled, perhaps, after it has marked another
/// page of the word; harvests take both meanwhile. A mark that has returned is in the next harvest,
/// or in one that was running.
fn a_mark_left_out_is_in_the_next_harvest(steps: Steps) {
    let marks = Arc::new(new());
    // How often the page was found; the lock lets distributions come one at a time.
    let found = Arc::new((Mutex::new(()), AtomicU64::new(0)));
    let harvest = move |marks: &ModelMarks, (lock, found): &(Mutex<()>, AtomicU64)| {
        let _one_at_a_time = lock.lock().unwrap();
        let bit = (steps.take)(marks) & 1;
        found.fetch_add(bit, AcqRel) + bit
    };
    let other = {
        let marks = marks.clone();
        thread::spawn(move || (steps.mark)(&marks, 0))
    };
    let harvester = {
        let (marks, found) = (marks.clone(), found.clone());
        thread::spawn(move || harvest(&marks, &found))
    };
    (steps.mark)(&marks, 1);
    // A harvest may run now: this waits for none.
    let before = found.1.load(Acquire);
    if !(steps.is_settled)(&marks, &|| ()) {
        (steps.mark)(&marks, 0);
    }
    assert!(harvest(&marks, &found) > before, "a mark that had returned was not found");
    other.join().unwrap();
    harvester.join().unwrap();
}

#[test]
fn a_mark_that_is_left_out_is_found() {
    // Three threads with four preemptions take minutes.
    with_preemptions(3, || a_mark_left_out_is_in_the_next_harvest(RIGHT));
}

/// Wrong: the page's bit alone, which whoever set it may not have announced above yet.
#[test]
fn the_model_sees_a_bit_without_stamp() {
    let wrong = Steps { is_settled: |marks, _| reserved(marks).pages.contains_acquire(0), ..RIGHT };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}

/// Wrong: the stamp alone, which says nothing about the other pages of its word.
#[test]
fn the_model_sees_a_stamp_without_bit() {
    assert!(is_caught(|| {
        let marks = new();
        marks.mark(1);
        if reserved(&marks).stamps[0].load(Acquire) != marks.sequence.load(Acquire) {
            marks.mark(0);
        }
        assert_eq!(take(&marks), 0b11);
    }));
}

/// Wrong: a distribution is numbered when it ends only.
#[test]
fn the_model_sees_a_distribution_that_is_numbered_once() {
    let wrong = Steps {
        take: |marks| {
            let mut all = 0;
            reserved(marks).pages.take(&(0..64), |_, bits| all |= bits);
            marks.sequence.fetch_add(2, AcqRel);
            all
        },
        ..RIGHT
    };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}

/// Another page of the word is marked while a distribution runs, which then clears the levels
/// above.
fn a_mark_beside_a_distribution(mark: fn(&ModelMarks, u64)) {
    let marks = Arc::new(new());
    let other = {
        let marks = marks.clone();
        thread::spawn(move || marks.mark(0))
    };
    let running = Running::new(&marks.sequence);
    mark(&marks, 1);
    let mut taken = 0;
    reserved(&marks).pages.take(&(0..64), |_, bits| taken |= bits);
    let left_out = marks.is_settled(0);
    drop(running);
    if !left_out {
        marks.mark(0);
    }
    assert!(taken & 1 != 0 || take(&marks) & 1 != 0, "a mark that had returned was not found");
    other.join().unwrap();
}

#[test]
fn a_mark_beside_a_distribution_settles_nothing() {
    model(|| a_mark_beside_a_distribution(|marks, page| marks.mark(page)));
}

/// Wrong: a number is kept that was read while a distribution ran.
#[test]
fn the_model_sees_a_stamp_of_a_running_distribution() {
    assert!(is_caught(|| {
        a_mark_beside_a_distribution(|marks, page| {
            let sequence = marks.sequence.load_seq_cst();
            reserved(marks).pages.mark_word(0, 1 << page);
            reserved(marks).stamps[0].store_release(sequence);
        });
    }));
}

/// Wrong: the number is read after the mark, of which a distribution may have taken the bits above.
#[test]
fn the_model_sees_a_stamp_that_is_read_after_the_mark() {
    let wrong = Steps {
        mark: |marks, page| {
            reserved(marks).pages.mark_word(0, 1 << page);
            let sequence = marks.sequence.load_seq_cst();
            if sequence % 2 == 0 {
                reserved(marks).stamps[0].store_release(sequence);
            }
        },
        ..RIGHT
    };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}

/// A hart and its entry for the page, as a TLB has it: filled, stored through, and looked at.
fn store_through_an_entry(
    marks: &ModelMarks,
    barrier: &Barrier,
    page: &AtomicU64,
    settle: impl Fn() -> u64,
) {
    barrier.meet();
    let settled = settle();
    barrier.meet();
    page.store(1, Relaxed);
    barrier.meet();
    if marks.sequence() != settled {
        barrier.meet();
        settle();
    }
    barrier.leave();
}

/// A hart fills an entry and stores through it, while a harvest takes the page's bit and reads it.
fn a_store_through_an_entry_is_read_or_marked(
    settle: fn(&ModelMarks) -> u64,
    take: fn(&ModelMarks) -> u64,
    has_barrier: bool,
) {
    let page = Arc::new(AtomicU64::new(0));
    let marks = Arc::new(new());
    let barrier = Arc::new(Barrier::default());
    marks.mark(0);
    let hart = {
        let (page, marks, barrier) = (page.clone(), marks.clone(), barrier.clone());
        thread::spawn(move || store_through_an_entry(&marks, &barrier, &page, || settle(&marks)))
    };
    assert_eq!(take(&marks), 1);
    if has_barrier {
        barrier.pass();
    }
    let read = page.load(Relaxed);
    hart.join().unwrap();
    assert!(read == 1 || take(&marks) == 1, "a store was lost");
}

fn settle(marks: &ModelMarks) -> u64 {
    marks.settle(|| marks.mark(0))
}

#[test]
fn a_store_through_an_entry_is_never_lost() {
    model(|| a_store_through_an_entry_is_read_or_marked(settle, take, true));
}

/// Wrong: each step that is left out or made late.
#[test]
fn the_model_sees_each_step_of_an_entry_that_is_missing() {
    assert!(is_caught(|| a_store_through_an_entry_is_read_or_marked(settle, take, false)));
    // The number is read after the mark: a harvest may have taken it.
    let late = |marks: &ModelMarks| {
        marks.mark(0);
        marks.sequence.load_seq_cst()
    };
    assert!(is_caught(move || a_store_through_an_entry_is_read_or_marked(late, take, true)));
    // A harvest is numbered when it begins only.
    let early = |marks: &ModelMarks| {
        marks.sequence.fetch_add(2, AcqRel);
        let mut all = 0;
        reserved(marks).pages.take(&(0..64), |_, bits| all |= bits);
        all
    };
    assert!(is_caught(move || a_store_through_an_entry_is_read_or_marked(settle, early, true)));
}

/// A hart fills an entry and stores through it while a client is switched on, which then reads the
/// page: it reads the store, or finds it marked. The same for a code watch, whose page is then
/// reported instead of marked.
fn a_client_that_comes_reads_or_finds(switch_on: fn(&AtomicU64, &ModelMarks)) {
    let (page, on) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let marks = Arc::new(new());
    let barrier = Arc::new(Barrier::default());
    let hart = {
        let (page, on, marks, barrier) = (page.clone(), on.clone(), marks.clone(), barrier.clone());
        thread::spawn(move || {
            let settle = || {
                marks.settle(|| {
                    if on.load(Acquire) != 0 {
                        marks.mark(0);
                    }
                })
            };
            store_through_an_entry(&marks, &barrier, &page, settle);
        })
    };
    switch_on(&on, &marks);
    barrier.pass();
    let read = page.load(Relaxed);
    hart.join().unwrap();
    assert!(read == 1 || take(&marks) == 1, "a store was lost");
}

#[test]
fn a_client_that_comes_misses_no_store_through_an_entry() {
    model(|| {
        a_client_that_comes_reads_or_finds(|on, marks| {
            on.store(1, Release);
            marks.unsettle();
        });
    });
}

/// Wrong: the sequence is left alone, or changed before the client is on.
#[test]
fn the_model_sees_a_client_that_comes_unnoticed() {
    assert!(is_caught(|| {
        a_client_that_comes_reads_or_finds(|on, _| on.store(1, Release));
    }));
    assert!(is_caught(|| {
        a_client_that_comes_reads_or_finds(|on, marks| {
            marks.unsettle();
            on.store(1, Release);
        });
    }));
}

/// A page is marked while all marks are dropped, as the last client is switched off. The mark may
/// be dropped in part: if a later one is left out because of it, it is found.
fn a_mark_beside_a_reset(reset: fn(&ModelMarks)) {
    let marks = Arc::new(new());
    let other = {
        let marks = marks.clone();
        thread::spawn(move || marks.mark(0))
    };
    reset(&marks);
    other.join().unwrap();
    if !marks.is_settled(0) {
        marks.mark(0);
    }
    assert_eq!(take(&marks), 1, "a mark that had returned was not found");
}

#[test]
fn a_mark_beside_a_reset_settles_nothing_that_is_dropped() {
    model(|| a_mark_beside_a_reset(ModelMarks::reset));
}

/// Wrong: a reset is not numbered, or as one that is over before it begins.
#[test]
fn the_model_sees_a_reset_without_a_number_of_its_own() {
    fn drop_all(marks: &ModelMarks) {
        let Reserved { pages, stamps } = reserved(marks);
        pages.reset();
        AtomicU64::reset(stamps);
    }
    assert!(is_caught(|| a_mark_beside_a_reset(drop_all)));
    assert!(is_caught(|| {
        a_mark_beside_a_reset(|marks| {
            marks.unsettle();
            drop_all(marks);
        });
    }));
}
