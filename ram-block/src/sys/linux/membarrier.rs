//! The heavy half of an asymmetric fence.
//!
//! Switching a client on must not lose a page that is being written at that
//! very moment. The writer stores to the page, then reads the mask of enabled
//! clients; the thread that switches it on stores the mask, then reads pages. For one
//! of the two to see the other, each needs a full fence between its store and
//! its load. A fence on every write of guest memory would slow all writers down
//! all the time, so the rare side pays for both: `membarrier` makes every
//! running thread of the process execute a full barrier before it returns,
//! after which a writer has either made its store visible or will read the new
//! mask.
//!
//! A harvest that has taken marks does the same, so that a writer may leave out a mark of a page
//! that is marked already (`dirty::marks`); and so does a thread that drops what others may read
//! (`hazard`).
//!
//! Windows has the same under another name (`sys::windows::membarrier`); where there is neither,
//! writers and readers have fences of their own (`sys::portable::membarrier`).
#![allow(unsafe_code)]

use std::sync::OnceLock;

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes a command, flags and a CPU number by value, reads
    // and writes no memory of ours, and answers unknown commands with an error.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

fn command() -> Option<libc::c_int> {
    static COMMAND: OnceLock<Option<libc::c_int>> = OnceLock::new();
    *COMMAND.get_or_init(|| {
        if membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
            Some(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
        } else if membarrier(MEMBARRIER_CMD_GLOBAL) {
            Some(MEMBARRIER_CMD_GLOBAL)
        } else {
            None
        }
    })
}

/// Whether [`every_thread`] can be had, so that writers need no fence of their own.
pub(crate) fn available() -> bool {
    command().is_some()
}

/// Makes every running thread of this process pass a full memory barrier.
///
/// Returns false where the kernel (or a sandbox's filter) refuses; then writers
/// must fence for themselves.
pub(crate) fn every_thread() -> bool {
    command().is_some_and(membarrier)
}

// QEMU's user mode takes no filters.
#[cfg(test)]
#[cfg(not(target_arch = "s390x"))]
pub(crate) mod refused_tests;
