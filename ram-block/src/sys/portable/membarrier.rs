//! The heavy half of an asymmetric fence (`sys::linux::membarrier`) where no kernel is asked.
//!
//! A program that has one thread needs no barrier: what it has stored it also reads. WebAssembly
//! without its atomic instructions is such a program. Everywhere else there is none, so that
//! [`available`] is false: `DirtyMemory` then has each writer pass a fence of its own between its
//! store and its look at the clients, which the fence of the harvesting thread pairs with.

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
