//! The argument of the parent module, checked by loom, and wrong orders, kept to show
//! that the model can see a stale translation, and two threads that wait for each other.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;

use super::*;

/// The code client's bit in the mask.
const SWITCH: u64 = 1 << 1;

/// A page of one word, its translation, and the watch between them.
struct Machine {
    page: AtomicU64,
    cache: Mutex<Option<u64>>,
    enabled: AtomicU64,
    watched: Bitmap<AtomicU64>,
    turn: Mutex<()>,
    reports: Mutex<Reports>,
    invalidations: AtomicU64,
}

type Written = fn(&Machine);

impl Machine {
    fn new() -> Self {
        Self {
            page: AtomicU64::new(0),
            cache: Mutex::new(None),
            enabled: AtomicU64::new(0),
            watched: Bitmap::new(64).unwrap(),
            turn: Mutex::new(()),
            reports: Mutex::new(Reports::default()),
            invalidations: AtomicU64::new(0),
        }
    }

    fn watches(&self) -> Watches<'_, AtomicU64> {
        Watches { enabled: &self.enabled, pages: &self.watched }
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap()
    }

    fn invalidate(&self) {
        self.invalidations.fetch_add(1, AcqRel);
        *self.cache.lock().unwrap() = None;
    }

    fn translation(&self) -> Option<u64> {
        *self.cache.lock().unwrap()
    }

    /// What a writer reads after its store.
    fn is_watched(&self) -> bool {
        // The barrier that `fence_writers` makes the writer pass.
        fence(SeqCst);
        self.enabled.load(Acquire) & SWITCH != 0 && self.watched.any(&(0..1))
    }

    /// The hook's side as it ships, after a store to the page.
    fn written(&self) {
        if self.is_watched() {
            self.report();
        }
    }

    fn report(&self) {
        let _turn = self.turn.lock().unwrap();
        let lock = || self.reports();
        report(&self.watches(), &(0..1), &lock, |_| None, |_, _| self.invalidate());
    }

    fn watch(&self) -> u64 {
        let mut reports = self.reports();
        reports.watch(&self.watches(), &(0..1), || fence(SeqCst));
        self.invalidations.load(Acquire)
    }

    /// Translates the page; `checks` that no report came meanwhile.
    fn translate(&self, checks: bool) {
        let watching = self.watch();
        let code = self.page.load(Relaxed);
        *self.cache.lock().unwrap() = Some(code);
        if checks && self.invalidations.load(Acquire) != watching {
            *self.cache.lock().unwrap() = None;
        }
    }
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn is_caught(body: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(body))).is_err()
}

/// A writer and a translator: what is left in the cache is what is in the page.
fn no_stale_translation(written: Written, checks: bool) {
    let machine = Arc::new(Machine::new());
    let writer = {
        let machine = machine.clone();
        thread::spawn(move || {
            machine.page.store(1, Relaxed);
            written(&machine);
        })
    };
    machine.translate(checks);
    writer.join().unwrap();
    assert_ne!(machine.translation(), Some(0), "a stale translation");
}

/// Two writers of a translated page: each finds no translation when it returns, and it was
/// reported once.
fn both_writers_find_it_gone(written: Written) {
    let machine = Arc::new(Machine::new());
    machine.translate(true);
    let write = move |machine: &Machine| {
        machine.page.store(1, Relaxed);
        written(machine);
        assert_eq!(machine.translation(), None, "a write returned before the hook");
    };
    let other = {
        let machine = machine.clone();
        thread::spawn(move || write(&machine))
    };
    write(&machine);
    other.join().unwrap();
    assert_eq!(machine.invalidations.load(Relaxed), 1, "reported more than once");
    assert_eq!(machine.enabled.load(Relaxed), 0, "nothing is watched");
}

/// A page is translated again while its report is under way, and written once more.
fn what_is_translated_again_is_reported_again(written: Written) {
    let machine = Arc::new(Machine::new());
    machine.translate(true);
    let writer = {
        let machine = machine.clone();
        thread::spawn(move || {
            machine.page.store(1, Relaxed);
            written(&machine);
        })
    };
    machine.translate(true);
    machine.page.store(2, Relaxed);
    machine.written();
    writer.join().unwrap();
    assert_eq!(machine.translation(), None, "a stale translation");
}

#[test]
fn a_translation_is_never_stale() {
    model(|| no_stale_translation(Machine::written, true));
}

#[test]
fn a_write_returns_after_the_hook_and_reports_once() {
    model(|| both_writers_find_it_gone(Machine::written));
}

#[test]
fn a_page_that_is_watched_during_its_report_stays_watched() {
    model(|| what_is_translated_again_is_reported_again(Machine::written));
}

/// Wrong: there is no barrier between the writer's store and its read of the bit.
#[test]
fn the_model_sees_a_writer_without_a_barrier() {
    fn unordered(machine: &Machine) {
        if machine.watched.contains_relaxed(0) {
            machine.written();
        }
    }
    assert!(is_caught(|| no_stale_translation(unordered, true)));
}

/// Wrong: the translator keeps what it inserted after the report.
#[test]
fn the_model_sees_a_translator_that_does_not_ask_again() {
    assert!(is_caught(|| no_stale_translation(Machine::written, false)));
}

/// Wrong: the bit is cleared before the hook is called.
#[test]
fn the_model_sees_a_bit_that_is_cleared_early() {
    fn early(machine: &Machine) {
        if machine.is_watched() {
            let _turn = machine.turn.lock().unwrap();
            if machine.watched.contains(0) {
                machine.reports().unwatch(&machine.watches(), &(0..1));
                machine.invalidate();
            }
        }
    }
    assert!(is_caught(|| both_writers_find_it_gone(early)));
}

/// Wrong: the switch is cleared before the hook is called.
#[test]
fn the_model_sees_a_switch_that_is_cleared_early() {
    fn early(machine: &Machine) {
        if machine.is_watched() {
            machine.enabled.fetch_and(!SWITCH, SeqCst);
            machine.report();
        }
    }
    assert!(is_caught(|| both_writers_find_it_gone(early)));
}

/// Wrong: a writer that saw the bit calls the hook, without a second check.
#[test]
fn the_model_sees_a_report_without_the_lock() {
    fn twice(machine: &Machine) {
        if machine.is_watched() {
            machine.invalidate();
            machine.reports().unwatch(&machine.watches(), &(0..1));
        }
    }
    assert!(is_caught(|| both_writers_find_it_gone(twice)));
}

/// Wrong: a report clears the bit whether the page was watched again or not.
#[test]
fn the_model_sees_a_new_watch_that_an_old_report_ends() {
    fn regardless(machine: &Machine) {
        if machine.is_watched() {
            let _turn = machine.turn.lock().unwrap();
            machine.invalidate();
            machine.reports().unwatch(&machine.watches(), &(0..1));
        }
    }
    assert!(is_caught(|| what_is_translated_again_is_reported_again(regardless)));
}

/// Wrong: the switch is cleared after the lock is released, under which a new watch set it.
#[test]
fn the_model_sees_a_switch_that_is_cleared_late() {
    fn late(machine: &Machine) {
        machine.written();
        if machine.reports().is_empty() {
            machine.enabled.fetch_and(!SWITCH, SeqCst);
        }
    }
    assert!(is_caught(|| what_is_translated_again_is_reported_again(late)));
}

/// Machines in a circle: the hook of each writes the next one's page.
type Circle = [Machine; 2];

/// The hooks that one thread is inside of, as (machine, report).
type Inside = RefCell<Vec<(usize, u64)>>;

type Turn = for<'a> fn(&'a Circle, usize, &Inside) -> Option<MutexGuard<'a, ()>>;

/// The call lock as it ships.
fn turn<'a>(circle: &'a Circle, at: usize, inside: &Inside) -> Option<MutexGuard<'a, ()>> {
    if inside.borrow().is_empty() {
        return Some(circle[at].turn.lock().unwrap());
    }
    circle[at].turn.try_lock().ok()
}

fn write_in_circle(circle: &Circle, at: usize, value: u64, inside: &Inside, turn: Turn) {
    let machine = &circle[at];
    machine.page.store(value, Relaxed);
    if !machine.is_watched() {
        return;
    }
    let telling = |_| inside.borrow().iter().find(|it| it.0 == at).map(|it| it.1);
    let _turn = turn(circle, at, inside);
    // A model that has failed has no more locks.
    let lock = || match std::thread::panicking() {
        true => Held::Failed(Reports::default()),
        false => Held::Held(machine.reports()),
    };
    report(&machine.watches(), &(0..1), &lock, telling, |report, _| {
        machine.invalidate();
        inside.borrow_mut().push((at, report));
        write_in_circle(circle, (at + 1) % circle.len(), value, inside, turn);
        inside.borrow_mut().pop();
    });
}

/// What is held under a lock, also while a model's failure unwinds.
enum Held<'a> {
    Held(MutexGuard<'a, Reports>),
    Failed(Reports),
}

impl std::ops::Deref for Held<'_> {
    type Target = Reports;

    fn deref(&self) -> &Reports {
        match self {
            Self::Held(reports) => reports,
            Self::Failed(reports) => reports,
        }
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Reports {
        match self {
            Self::Held(reports) => reports,
            Self::Failed(reports) => reports,
        }
    }
}

/// Two threads go round the circle from different machines. When a write returns, the
/// translations of all pages are gone.
fn two_threads_go_round(turn: Turn) {
    let circle: Arc<Circle> = Arc::new([Machine::new(), Machine::new()]);
    circle.iter().for_each(|machine| machine.translate(true));
    let write = move |circle: &Circle, at| {
        write_in_circle(circle, at, 1, &Inside::default(), turn);
        assert_eq!(circle[at].translation(), None, "a write returned before the hook");
    };
    let other = {
        let circle = circle.clone();
        thread::spawn(move || write(&circle, 1))
    };
    write(&circle, 0);
    other.join().unwrap();
    assert!(circle.iter().all(|machine| machine.enabled.load(Relaxed) == 0), "still watched");
}

#[test]
fn hooks_that_write_each_others_blocks_come_to_an_end() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| two_threads_go_round(turn));
}

/// Wrong: a hook waits for another thread's call lock. The model does not outlive a real
/// deadlock, so the waiting threads are counted instead.
#[test]
fn the_model_sees_hooks_that_wait_for_each_other() {
    fn waits<'a>(circle: &'a Circle, at: usize, inside: &Inside) -> Option<MutexGuard<'a, ()>> {
        static WAITING: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        if inside.borrow().is_empty() {
            return Some(circle[at].turn.lock().unwrap());
        }
        if inside.borrow().iter().any(|it| it.0 == at) {
            return None;
        }
        let mut waits = false;
        loop {
            if let Ok(turn) = circle[at].turn.try_lock() {
                WAITING.fetch_sub(u64::from(waits), SeqCst);
                return Some(turn);
            }
            if !std::mem::replace(&mut waits, true) {
                let others = WAITING.fetch_add(1, SeqCst);
                assert_eq!(others, 0, "both threads wait, each with the other's turn");
            }
            thread::yield_now();
        }
    }
    assert!(is_caught(|| two_threads_go_round(waits)));
}
