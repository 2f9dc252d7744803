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

const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn call(command: libc::c_int) -> libc::c_long {
    // SAFETY: membarrier takes a command, flags and a CPU number by value, reads
    // and writes no memory of ours, and answers unknown commands with an error.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

fn membarrier(command: libc::c_int) -> bool {
    call(command) == 0
}

static COMMAND: OnceLock<Option<libc::c_int>> = OnceLock::new();

/// Asks the kernel which commands it has, once, and chooses one.
fn command() -> Option<libc::c_int> {
    *COMMAND.get_or_init(|| {
        // Negative where it is refused.
        let offered = libc::c_int::try_from(call(MEMBARRIER_CMD_QUERY)).unwrap_or(0).max(0);
        let expedited =
            MEMBARRIER_CMD_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
        if offered & expedited == expedited && membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        {
            Some(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
        } else {
            Some(MEMBARRIER_CMD_GLOBAL).filter(|global| offered & global != 0)
        }
    })
}

/// Lets this process never call `membarrier`, as one whose sandbox kills it for that call: writers
/// of guest memory pass a fence of their own then, at each write while a client is on. A sandbox
/// that refuses the call with an error is found out, and needs this not.
///
/// Returns false if it is too late: a block or an address space was made before.
pub fn forbid_membarrier() -> bool {
    COMMAND.get_or_init(|| None).is_none()
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
