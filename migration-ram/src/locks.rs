//! Locks that stay usable after a panic.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// The guard of a lock or a wait, whether or not a thread has panicked with it.
///
/// A closure of the caller may panic on one thread; the others must still end, and let the guest
/// run. What the locks guard can be used then: it is numbers, flags and lists that are valid
/// between any two statements.
pub(crate) fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Locks `mutex`, as [`unpoisoned`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}
