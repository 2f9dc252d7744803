//! When values are dropped, and by whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::hazard::cell::HazardCell;
use crate::hazard::readers::Readers;
use crate::hazard::record::Record;
use crate::hazard::thread::{fence_if_needed, leave_slowly, light_fence};

/// A value that counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counted() -> (Arc<Counted>, impl Fn() -> usize) {
    let drops = Arc::new(AtomicUsize::new(0));
    (Arc::new(Counted(drops.clone())), move || drops.load(Ordering::SeqCst))
}

/// A cell with a value, which is known by how often it was dropped.
fn cell() -> (HazardCell<Counted>, impl Fn() -> usize) {
    let (value, drops) = counted();
    (HazardCell::new(value), drops)
}

fn replace(cell: &HazardCell<Counted>) {
    cell.set(counted().0);
    drop(HazardCell::reclaim([cell]));
}

#[test]
fn a_value_is_kept_until_it_is_reclaimed() {
    let (cell, drops) = cell();
    let (second, second_drops) = counted();
    assert_eq!(cell.set(second), 1);
    assert_eq!(cell.set(counted().0), 2);
    assert_eq!((drops(), second_drops()), (0, 0));
    let reclaimed = HazardCell::reclaim([&cell]);
    assert_eq!((drops(), second_drops()), (0, 0));
    drop(reclaimed);
    assert_eq!((drops(), second_drops()), (1, 1));
}

#[test]
fn a_cell_drops_what_it_has() {
    let (cell, drops) = cell();
    let (second, second_drops) = counted();
    cell.set(second);
    drop(cell);
    assert_eq!((drops(), second_drops()), (1, 1));
}

#[test]
fn a_value_that_is_kept_elsewhere_stays() {
    let (cell, drops) = cell();
    let kept = cell.load_full();
    replace(&cell);
    assert_eq!(drops(), 0);
    drop(kept);
    assert_eq!(drops(), 1);
}

/// As handlers of devices do, which access the bus and commit a transaction.
#[test]
fn the_outermost_reader_drops_what_it_has_replaced() {
    // More than there are slots.
    for depth in 1..12 {
        let (cell, drops) = cell();
        let mut guards: Vec<_> = (0..depth).map(|_| cell.load()).collect();
        replace(&cell);
        // In any order.
        guards.swap(0, depth / 2);
        while let Some(guard) = guards.pop() {
            assert_eq!(drops(), 0, "of {depth}");
            let current = cell.load();
            drop((guard, current));
        }
        assert_eq!(drops(), 1, "of {depth}");
    }
}

#[test]
fn values_replaced_one_by_one_go_with_their_readers() {
    let (cell, drops) = cell();
    let first = cell.load();
    let (second, second_drops) = counted();
    cell.set(second);
    drop(HazardCell::reclaim([&cell]));
    let guard = cell.load();
    replace(&cell);
    assert_eq!((drops(), second_drops()), (0, 0));
    drop(guard);
    assert_eq!((drops(), second_drops()), (0, 1));
    drop(first);
    assert_eq!(drops(), 1);
}

#[test]
fn a_value_of_two_cells_is_dropped_with_the_second() {
    let (value, drops) = counted();
    let cells = [HazardCell::new(value.clone()), HazardCell::new(value)];
    let guard = cells[1].load();
    replace(&cells[0]);
    let inner = cells[1].load();
    drop(guard);
    replace(&cells[1]);
    assert_eq!(drops(), 0);
    drop(inner);
    assert_eq!(drops(), 1);
    // All cells at once.
    assert_eq!(cells.each_ref().map(|cell| cell.set(counted().0)), [1, 1]);
    drop(HazardCell::reclaim(&cells));
    assert_eq!(cells[0].set(counted().0), 1);
}

/// A value whose drop reads its cell, replaces what is there, and so drops another value.
#[test]
fn a_drop_may_use_the_cell() {
    struct Nested(Option<Arc<HazardCell<Nested>>>, Arc<AtomicUsize>);
    impl Drop for Nested {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
            if let Some(cell) = self.0.take() {
                let read = cell.load();
                cell.set(Arc::new(Nested(None, self.1.clone())));
                drop(HazardCell::reclaim([&*cell]));
                drop(read);
            }
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));
    let nested = |cell| Arc::new(Nested(cell, drops.clone()));
    let cell = Arc::new(HazardCell::new(nested(None)));
    cell.set(nested(Some(cell.clone())));
    let read = cell.load();
    cell.set(nested(None));
    drop(HazardCell::reclaim([&*cell]));
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    drop(read);
    assert_eq!(drops.load(Ordering::SeqCst), 3);
}

#[cfg(not(target_family = "wasm"))] // aborts
#[test]
fn a_panic_leaves_the_value() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let (cell, drops) = cell();
    let panics = catch_unwind(AssertUnwindSafe(|| {
        let _guard = cell.load();
        replace(&cell);
        panic!("in a handler");
    }));
    assert!(panics.is_err());
    assert_eq!(drops(), 1);
    let again = cell.load_at_once();
    assert!(again.is_some() || !crate::sys::membarrier::available(), "a slot is left");
}

/// A reader may have announced the value, which the writer cannot know without a barrier.
#[cfg(all(target_os = "linux", not(target_arch = "s390x")))]
#[test]
fn a_value_is_kept_if_the_barrier_is_refused() {
    use crate::sys::linux::membarrier::refused_tests::where_it_is_refused;

    let (cell, drops) = cell();
    let is_refused = where_it_is_refused(|| {
        replace(&cell);
        assert_eq!(drops(), 0);
    });
    if is_refused {
        // By a thread whose barrier is not.
        drop(HazardCell::reclaim([&cell]));
        assert_eq!(drops(), 1);
    }
}

/// Where there is no barrier of all threads, leaving is never all that there is to do.
#[test]
fn a_slot_that_has_to_fence_is_left_slowly() {
    let record: &'static Record = Box::leak(Box::new(Record::new(true)));
    let slot = record.free_slot().unwrap();
    let value = std::ptr::without_provenance_mut::<()>(64);
    assert_eq!(slot.announce(|| value, || fence_if_needed(slot)), Ok(value));
    assert!(slot.has(64) && !slot.is_free());
    slot.set_waited_for(true);
    assert!(slot.leave(light_fence));
    leave_slowly(slot, 64);
    assert!(slot.is_free() && !slot.is_waited_for() && slot.fences());
}

/// A reader that was not told that its value waits, as a barrier was refused just then.
#[test]
fn a_value_that_was_left_behind_goes_with_the_next_one() {
    let record: &'static Record = Box::leak(Box::new(Record::new(false)));
    let slot = record.free_slot().unwrap();
    let mut readers = Readers::<&'static Record, usize>::new();
    readers.add(record);
    let value = std::ptr::without_provenance_mut::<()>(64);
    assert_eq!(slot.announce(|| value, light_fence), Ok(value));
    assert!(readers.retire(vec![(64, 64)], || ()).is_empty());
    assert!(slot.leave(light_fence)); // had it looked a moment later
    let mut unread = readers.retire(vec![(128, 128)], || ());
    unread.sort_unstable();
    assert_eq!(unread, [64, 128]);
}

// WebAssembly with WASI has no threads.
#[cfg(not(target_family = "wasm"))]
mod threads;
