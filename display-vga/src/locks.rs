//! Locks that stay usable after a panic.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// The guard of a lock or a wait, whether or not a thread has panicked with it.
///
/// A panic on one thread must not end the display for the guest or the other viewers. What the
/// locks guard can be used then: registers are plain numbers, pictures are replaced as a whole, and
/// lists are valid between any two statements.
pub(crate) fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Locks `mutex`, as [`unpoisoned`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}
