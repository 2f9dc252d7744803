//! A value that is replaced while others read it.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hazard::record::Slot;
use crate::hazard::thread::{self, Value};

/// An [`Arc`] that is replaced while others read what it points to. Its readers announce what they
/// read (hazard pointers) without a locked instruction, where the host has a barrier of all threads
/// (Linux, Windows): the thread that replaces the value pays for that.
///
/// A replaced value is kept until it is [reclaimed](Self::reclaim), which costs a system call of
/// half a microsecond or some more. It is dropped by that or, if threads read it then, by the last
/// of them as it ends reading.
///
/// ```
/// use std::sync::Arc;
/// use ram_block::HazardCell;
///
/// let cell = HazardCell::new(Arc::new("before"));
/// let guard = cell.load();
/// cell.set(Arc::new("after"));
/// assert_eq!((*guard, *cell.load()), ("before", "after"));
/// drop(HazardCell::reclaim([&cell])); // drops nothing yet
/// drop(guard); // drops "before"
/// ```
///
/// A sandbox that begins to forbid `membarrier` after the first read should allow it: replaced
/// values are then kept as long as the cell.
pub struct HazardCell<T> {
    /// Made by [`Arc::into_raw`] of a count that the cell owns.
    current: AtomicPtr<T>,
    /// Replaced values that were not reclaimed. Held while a value is replaced.
    retired: Mutex<Vec<Arc<T>>>,
    owns: PhantomData<Arc<T>>,
}

/// The value of a [`HazardCell`] as it was when this was made, kept until this is dropped.
///
/// Two words, which are passed on in registers.
pub struct HazardGuard<'a, T> {
    /// A raw pointer, so that the guard stays on the thread whose slot it has.
    value: *const T,
    /// Where the value's address is announced; without it, the guard owns a count of the value.
    slot: Option<&'static Slot>,
    of: PhantomData<&'a HazardCell<T>>,
}

/// Values of cells that no thread reads any more. Drop it where their `Drop` may run: without locks
/// that this may take.
#[must_use = "the values are dropped with it"]
#[derive(Default)]
pub struct Reclaimed(#[allow(dead_code)] Vec<Value>);

impl<T> HazardCell<T> {
    /// A cell with this value.
    pub fn new(value: Arc<T>) -> Self {
        let current = AtomicPtr::new(Arc::into_raw(value).cast_mut());
        Self { current, retired: Mutex::default(), owns: PhantomData }
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<T>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(always)]
    fn current(&self) -> *mut T {
        self.current.load(Ordering::Acquire)
    }

    /// As [`load`](Self::load), where that is a store and some loads: if the thread has read from a
    /// cell before, and reads no other value at the moment. Never where the host has no barrier of
    /// all threads.
    #[inline(always)]
    pub fn load_at_once(&self) -> Option<HazardGuard<'_, T>> {
        let slot = thread::at_hand()?;
        if !slot.is_free() {
            return None;
        }
        match slot.announce(|| self.current(), thread::light_fence) {
            Ok(value) => Some(HazardGuard::new(value, Some(slot))),
            Err(found) => {
                leave_replaced(slot, found.addr());
                None
            }
        }
    }

    /// The current value, to be read on this thread. Never waits, but for a moment in a thread that
    /// ends, or that reads more than eight values at once.
    #[inline]
    pub fn load(&self) -> HazardGuard<'_, T> {
        self.load_at_once().unwrap_or_else(|| self.load_slowly())
    }

    #[cold]
    #[inline(never)]
    fn load_slowly(&self) -> HazardGuard<'_, T> {
        while let Some(slot) = thread::free_slot() {
            match slot.announce(|| self.current(), || thread::fence_if_needed(slot)) {
                Ok(value) => return HazardGuard::new(value, Some(slot)),
                Err(found) => leave_replaced(slot, found.addr()),
            }
        }
        // The thread ends, or is deep within handlers.
        HazardGuard::new(Arc::into_raw(self.owned()), None)
    }

    /// The current value, without a hazard pointer.
    fn owned(&self) -> Arc<T> {
        let retired = self.retired();
        // SAFETY: the cell owns a count of the current value; it does so until `retired` is
        // released, as values are replaced under that lock alone, and reclaimed after that.
        let value = unsafe { another(self.current()) };
        drop(retired);
        value
    }

    /// The current value, to be kept.
    pub fn load_full(&self) -> Arc<T> {
        let guard = self.load();
        // SAFETY: it was made by `Arc::into_raw`, and the guard keeps a count from being dropped.
        unsafe { another(guard.value) }
    }

    /// Replaces the value; returns how many former ones wait to be [reclaimed](Self::reclaim).
    pub fn set(&self, value: Arc<T>) -> usize {
        let mut retired = self.retired();
        // AcqRel: readers of the new value see what was written to it, and the former one is
        // dropped after what was done to it.
        let former = self.current.swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel); // W1
        // SAFETY: made by `Arc::into_raw`, of a count that the cell owned and gives to the list.
        retired.push(unsafe { Arc::from_raw(former) });
        retired.len()
    }
}

impl<T: Send + Sync + 'static> HazardCell<T> {
    /// The replaced values of these cells that no thread reads, by one barrier for all. Those that
    /// some threads read are dropped by the last of them.
    pub fn reclaim<'a>(cells: impl IntoIterator<Item = &'a Self>) -> Reclaimed {
        let mut retired: Vec<(&Self, Vec<Arc<T>>)> = Vec::new();
        for cell in cells {
            let values = std::mem::take(&mut *cell.retired());
            if !values.is_empty() {
                retired.push((cell, values));
            }
        }
        if retired.is_empty() {
            return Reclaimed::default();
        }
        // W2: after the values were taken from the lists, and so after they were replaced.
        if !thread::barrier() {
            log::warn!("membarrier is refused, which was allowed at first: replaced values stay");
            for (cell, values) in retired {
                cell.retired().extend(values);
            }
            return Reclaimed::default();
        }
        let values = retired.into_iter().flat_map(|(_, values)| values);
        let values = values.map(|value| (Arc::as_ptr(&value).addr(), value as Value));
        Reclaimed(thread::retire(values.collect()))
    }
}

#[inline(always)]
fn leave(slot: &'static Slot, address: usize) {
    if slot.leave(thread::light_fence) {
        thread::leave_slowly(slot, address);
    }
}

/// After a value was announced that had just been replaced.
#[cold]
#[inline(never)]
fn leave_replaced(slot: &'static Slot, address: usize) {
    leave(slot, address);
}

/// Another count of a value.
///
/// # Safety
///
/// The value was made by `Arc::into_raw`, and one of its counts stays meanwhile.
unsafe fn another<T>(value: *const T) -> Arc<T> {
    // SAFETY: as the caller promises.
    unsafe { Arc::increment_strong_count(value) };
    // SAFETY: of the count that was just added.
    unsafe { Arc::from_raw(value) }
}

impl<T> Drop for HazardCell<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Arc::into_raw`, of a count that the cell owns. Guards borrow the cell,
        // so that there is none.
        drop(unsafe { Arc::from_raw(*self.current.get_mut()) });
    }
}

impl<T> fmt::Debug for HazardCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HazardCell").finish_non_exhaustive()
    }
}

impl<T> HazardGuard<'_, T> {
    #[inline(always)]
    fn new(value: *const T, slot: Option<&'static Slot>) -> Self {
        Self { value, slot, of: PhantomData }
    }
}

impl<T> Deref for HazardGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard owns a count; or the value was the current one, of which the cell owned
        // a count, after its address was announced. That count is dropped by `reclaim` or by a
        // reader that leaves, if the address is in no slot after a barrier, or by the cell, which
        // the guard borrows. The slot is cleared only as the guard is dropped.
        unsafe { &*self.value }
    }
}

impl<T> Drop for HazardGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        match self.slot {
            Some(slot) => leave(slot, self.value.addr()),
            // SAFETY: made by `Arc::into_raw`, of a count that the guard owns.
            None => drop(unsafe { Arc::from_raw(self.value) }),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for HazardGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Debug for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaimed").field("values", &self.0.len()).finish()
    }
}
