//! The argument of the parent module, checked by loom, and wrong orders, kept to show
//! that the model can see a stale translation.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;

/// A page of one word, its translation, and the watch between them.
struct Machine {
    page: AtomicU64,
    cache: Mutex<Option<u64>>,
    watched: Bitmap<AtomicU64>,
    lock: Mutex<()>,
    invalidations: AtomicU64,
}

type Written = fn(&Machine);

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            page: AtomicU64::new(0),
            cache: Mutex::new(None),
            watched: Bitmap::new(64).unwrap(),
            lock: Mutex::new(()),
            invalidations: AtomicU64::new(0),
        })
    }

    fn invalidate(&self) {
        self.invalidations.fetch_add(1, AcqRel);
        *self.cache.lock().unwrap() = None;
    }

    /// The hook's side as it ships, after a store to the page.
    fn written(&self) {
        // The barrier that `order_writers` makes the writer pass.
        fence(SeqCst);
        let lock = || self.lock.lock().unwrap();
        written(&self.watched, &(0..1), lock, |_, _| self.invalidate());
    }

    fn watch(&self) -> u64 {
        let _lock = self.lock.lock().unwrap();
        watch(&self.watched, &(0..1), || fence(SeqCst));
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
    let machine = Machine::new();
    let writer = {
        let machine = machine.clone();
        thread::spawn(move || {
            machine.page.store(1, Relaxed);
            written(&machine);
        })
    };
    machine.translate(checks);
    writer.join().unwrap();
    assert_ne!(*machine.cache.lock().unwrap(), Some(0), "a stale translation");
}

/// Two writers of a translated page: whoever returns finds no translation, and it was
/// reported once.
fn both_writers_find_it_gone(written: Written) {
    let machine = Machine::new();
    machine.translate(true);
    let write = move |machine: &Machine| {
        machine.page.store(1, Relaxed);
        written(machine);
        assert_eq!(*machine.cache.lock().unwrap(), None, "a write returned before the hook");
    };
    let other = {
        let machine = machine.clone();
        thread::spawn(move || write(&machine))
    };
    write(&machine);
    other.join().unwrap();
    assert_eq!(machine.invalidations.load(Relaxed), 1, "reported more than once");
}

#[test]
fn a_translation_is_never_stale() {
    model(|| no_stale_translation(Machine::written, true));
}

#[test]
fn a_write_returns_after_the_hook_and_reports_once() {
    model(|| both_writers_find_it_gone(Machine::written));
}

/// Wrong: nothing stands between the writer's store and its look at the bit.
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

/// Wrong: the bit is cleared before the hook is told.
#[test]
fn the_model_sees_a_bit_that_is_cleared_early() {
    fn early(machine: &Machine) {
        fence(SeqCst);
        if machine.watched.any(&(0..1)) {
            let _lock = machine.lock.lock().unwrap();
            let mut found = false;
            machine.watched.take(&(0..1), |_, _| found = true);
            if found {
                machine.invalidate();
            }
        }
    }
    assert!(is_caught(|| both_writers_find_it_gone(early)));
}

/// Wrong: whoever saw the bit tells the hook, without a second look.
#[test]
fn the_model_sees_a_report_without_the_lock() {
    fn twice(machine: &Machine) {
        fence(SeqCst);
        if machine.watched.any(&(0..1)) {
            machine.invalidate();
            machine.watched.take(&(0..1), |_, _| ());
        }
    }
    assert!(is_caught(|| both_writers_find_it_gone(twice)));
}
