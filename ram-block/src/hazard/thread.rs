//! The record of the calling thread, and the one list of them.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::sync::atomic::{Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hazard::readers::Readers;
use crate::hazard::record::{Record, Slot};
use crate::sys::membarrier;

/// A value that was replaced.
pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// The threads of the process, of which a barrier passes all. They delay nothing but what they
/// read: cells have nothing else in common.
struct Threads {
    readers: Readers<&'static Record, Value>,
    /// Records of threads that have ended, for others: as many are allocated as there ever were
    /// threads at the same time.
    unused: Vec<&'static Record>,
}

static THREADS: Mutex<Threads> =
    Mutex::new(Threads { readers: Readers::new(), unused: Vec::new() });

fn lock() -> MutexGuard<'static, Threads> {
    // Values are dropped after it is released; nothing else can panic.
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The first slot of this thread, once it has some and unless it has to fence for itself. It
    /// has no destructor, so that it is found without a look at whether that has run.
    static AT_HAND: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    static REGISTRATION: OnceCell<Registration> = const { OnceCell::new() };
}

/// A thread's record until the thread ends.
struct Registration(&'static Record);

impl Registration {
    fn new() -> Self {
        let mut threads = lock();
        let record = threads.unused.pop().unwrap_or_else(|| {
            let record: &'static Record =
                Box::leak(Box::new(Record::new(!membarrier::available())));
            threads.readers.add(record);
            record
        });
        drop(threads);
        AT_HAND.set(record.slots().first().filter(|slot| !slot.fences()));
        Self(record)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        AT_HAND.set(None);
        // A guard that the thread still has (in another thread-local value, or leaked) keeps the
        // record for itself.
        if self.0.slots().iter().all(Slot::is_free) {
            lock().unused.push(self.0);
        }
    }
}

/// The first slot of this thread, if it can be had at once.
#[inline(always)]
pub(super) fn at_hand() -> Option<&'static Slot> {
    AT_HAND.get()
}

/// A free slot of this thread; none if it reads as many values as there are slots, and while it
/// ends, after its record was given back.
pub(super) fn free_slot() -> Option<&'static Slot> {
    let record = |registration: &OnceCell<_>| registration.get_or_init(Registration::new).0;
    REGISTRATION.try_with(record).ok()?.free_slot()
}

/// The light half of the barrier, for a slot that was [at hand](at_hand): it keeps the order for
/// the compiler.
#[inline(always)]
pub(super) fn light_fence() {
    compiler_fence(Ordering::SeqCst);
}

/// The light half of the barrier, for any slot.
pub(super) fn fence_if_needed(slot: &Slot) {
    light_fence();
    if slot.fences() {
        fence(Ordering::SeqCst);
    }
}

/// The heavy half of the barrier; returns whether it was passed.
pub(super) fn barrier() -> bool {
    let is_passed = !membarrier::available() || membarrier::every_thread();
    fence(Ordering::SeqCst);
    is_passed
}

/// As [`barrier`], while readers are told that values wait for them. If it fails, which the one
/// before did not, a reader that leaves in that very moment may leave its value to the next call
/// that retires any.
fn pass_barrier() {
    barrier();
}

/// Retires values that were replaced before a [`barrier`] was passed; returns those to be dropped.
pub(super) fn retire(values: Vec<(usize, Value)>) -> Vec<Value> {
    lock().readers.retire(values, pass_barrier)
}

/// What there is to do for a thread that has left the value at `address`, if it was told so.
#[cold]
#[inline(never)]
pub(super) fn leave_slowly(slot: &'static Slot, address: usize) {
    if slot.is_waited_for_after(|| fence_if_needed(slot)) {
        let unread = lock().readers.left_by(slot, address, pass_barrier);
        // Without the lock: `Drop` of the value may do anything.
        drop(unread);
    }
}
