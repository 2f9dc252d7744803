//! Threads that end, and the last of several that read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::{Counted, cell, replace};
use crate::hazard::cell::{HazardCell, HazardGuard};
use crate::hazard::record::Record;
use crate::hazard::thread;

thread_local! {
    /// Dropped after or before what the cells have of this thread: it is made before, or after.
    static GUARD: RefCell<Option<HazardGuard<'static, Counted>>> = const { RefCell::new(None) };
    static READER: RefCell<Option<ReadsAtTheEnd>> = const { RefCell::new(None) };
}

struct ReadsAtTheEnd(&'static HazardCell<Counted>, Arc<AtomicUsize>);

impl Drop for ReadsAtTheEnd {
    fn drop(&mut self) {
        // Another thread may have the record by now.
        let is_registered = thread::free_slot().is_some();
        assert!(is_registered || thread::at_hand().is_none(), "a slot of another thread");
        let guards = [self.0.load(), self.0.load()];
        assert_eq!(guards[0].0.load(Ordering::SeqCst), 0);
        replace(self.0);
        assert_eq!(guards[1].0.load(Ordering::SeqCst), 0);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn threads_read_until_their_very_end() {
    let done = Arc::new(AtomicUsize::new(0));
    for first in [true, false] {
        let (cell, drops) = cell();
        let (other, other_drops) = super::cell();
        let [cell, other]: [&'static _; 2] =
            [Box::leak(Box::new(cell)), Box::leak(Box::new(other))];
        let counts = done.clone();
        let thread = std::thread::spawn(move || {
            if first {
                drop(other.load());
            }
            GUARD.with(|_| ());
            READER.set(Some(ReadsAtTheEnd(cell, counts)));
            GUARD.set(Some(other.load()));
            replace(other);
        });
        thread.join().unwrap();
        assert_eq!((drops(), other_drops()), (1, 1));
    }
    assert_eq!(done.load(Ordering::SeqCst), 2);
}

#[test]
fn a_value_is_dropped_by_the_last_thread_that_reads_it() {
    let (cell, drops) = cell();
    let (begin, replaced) = (Barrier::new(9), Barrier::new(9));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let guard = cell.load();
                    begin.wait();
                    replaced.wait();
                    assert_eq!(guard.0.load(Ordering::SeqCst), 0);
                    drop(guard);
                })
            })
            .collect();
        begin.wait();
        replace(&cell);
        assert_eq!(drops(), 0);
        replaced.wait();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(drops(), 1);
    });
}

/// A process makes any number of threads, and a barrier's thread looks at all records.
#[test]
fn a_thread_has_the_record_of_one_that_has_ended() {
    let slot = || {
        let (cell, _) = cell();
        drop(cell.load());
        thread::free_slot().map(|slot| std::ptr::from_ref(slot).addr())
    };
    // Other tests have threads, too.
    let slots: BTreeSet<_> =
        (0..400).map(|_| std::thread::spawn(slot).join().unwrap().unwrap()).collect();
    assert!(slots.len() < 200, "{} records for 400 threads in turn", slots.len());
}

/// A guard that is forgotten keeps its slot, and so the record, for ever.
#[test]
fn a_record_that_is_in_use_is_not_given_to_another_thread() {
    let record = || {
        let slot = thread::free_slot().map(std::ptr::from_ref);
        slot.unwrap().addr() / align_of::<Record>()
    };
    let (cell, _) = cell();
    let cell: &'static _ = Box::leak(Box::new(cell));
    let forgets = std::thread::spawn(move || {
        std::mem::forget(cell.load());
        record()
    });
    let forgotten = forgets.join().unwrap();
    // More at once than have ended so far, so that they take all that are free.
    for _ in 0..3 {
        let have_one = Barrier::new(40);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..40)
                .map(|_| {
                    scope.spawn(|| {
                        let own = record();
                        have_one.wait();
                        own
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| assert_ne!(thread.join().unwrap(), forgotten));
        });
    }
}
