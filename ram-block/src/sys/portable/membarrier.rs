//! The heavy half of an asymmetric fence (`sys::linux::membarrier`) where no kernel is asked.
//!
//! A program that has one thread needs no barrier: what it has stored it also reads. WebAssembly
//! without its atomic instructions is such a program. Everywhere else there is none, so that
//! [`available`] is false: `DirtyMemory` then has each writer pass a fence of its own between its
//! store and its look at the clients, which the fence of the harvesting thread pairs with; and each
//! reader of a `HazardCell` passes one as it begins and one as it ends.
//!
//! - macOS has no such call. A page whose protection is changed (`mprotect`) makes other processors
//!   flush their address translations, but that they pass a barrier then is promised nowhere, and
//!   processors that flush by broadcast, as arm64, interrupt nobody.
//! - FreeBSD has Linux's `membarrier` since version 14, but the `libc` crate does not, and a system
//!   call whose number an older kernel does not know may end the process by SIGSYS.

/// Whether the program cannot have a second thread.
const HAS_ONE_THREAD: bool = cfg!(all(target_family = "wasm", not(target_feature = "atomics")));

/// Whether [`every_thread`] can be had, so that writers need no fence of their own.
pub(crate) fn available() -> bool {
    HAS_ONE_THREAD
}

/// Makes every running thread of this process pass a full memory barrier; returns whether it could.
pub(crate) fn every_thread() -> bool {
    HAS_ONE_THREAD
}
