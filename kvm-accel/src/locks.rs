//! Locks that stay usable after a panic.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// The guard of a lock or a wait, whether or not a thread has panicked with it.
///
/// A device's handler or a hook may panic on a vCPU's thread, which can be run again: the machine
/// must still stop vCPUs, change slots and merge logs. What its locks guard can be used then. It is
/// numbers, flags and lists that are valid between any two statements; and bits of a log are given
/// up only after they were merged, so that a harvest that was cut short is repeated.
pub(crate) fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Locks `mutex`, as [`unpoisoned`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}
