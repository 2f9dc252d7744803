//! The argument of the parent module, checked by loom, with what is wrong kept to show that the
//! model can see the loss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;

type ModelMarks = Marks<AtomicU64>;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
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
    let marks = Arc::new(ModelMarks::new(64).unwrap());
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
    let marks = Arc::new(ModelMarks::new(64).unwrap());
    // How often the page was found; the lock lets distributions come one at a time.
    let found = Arc::new(Mutex::new(0u64));
    let harvest = move |marks: &ModelMarks, found: &Mutex<u64>| {
        let mut found = found.lock().unwrap();
        *found += (steps.take)(marks) & 1;
        *found
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
    let before = *found.lock().unwrap();
    if !(steps.is_settled)(&marks, &|| ()) {
        (steps.mark)(&marks, 0);
    }
    assert!(harvest(&marks, &found) > before, "a mark that had returned was not found");
    other.join().unwrap();
    harvester.join().unwrap();
}

#[test]
fn a_mark_that_is_left_out_is_found() {
    model(|| a_mark_left_out_is_in_the_next_harvest(RIGHT));
}

/// Wrong: the page's bit alone, which whoever set it may not have announced above yet.
#[test]
fn the_model_sees_a_bit_without_stamp() {
    let wrong = Steps { is_settled: |marks, _| marks.pages.contains_acquire(0), ..RIGHT };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}

/// Wrong: the stamp alone, which says nothing about the other pages of its word.
#[test]
fn the_model_sees_a_stamp_without_bit() {
    assert!(is_caught(|| {
        let marks = ModelMarks::new(64).unwrap();
        marks.mark(1);
        if marks.stamps[0].load(Acquire) != marks.sequence.load(Acquire) {
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
            marks.pages.take(&(0..64), |_, bits| all |= bits);
            marks.sequence.fetch_add(2, AcqRel);
            all
        },
        ..RIGHT
    };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}

/// Wrong: the number is read after the mark, of which a distribution may have taken the bits above.
#[test]
fn the_model_sees_a_stamp_that_is_read_after_the_mark() {
    let wrong = Steps {
        mark: |marks, page| {
            marks.pages.mark_word(0, 1 << page);
            let sequence = marks.sequence.load_seq_cst();
            if sequence % 2 == 0 {
                marks.stamps[0].store_release(sequence);
            }
        },
        ..RIGHT
    };
    assert!(is_caught(move || a_mark_left_out_is_in_the_next_harvest(wrong)));
}
