//! The heavy half of an asymmetric fence (`sys::linux::membarrier`) on Windows.
//!
//! `FlushProcessWriteBuffers` interrupts every processor that runs a thread of the process, and
//! returns after each has passed a full barrier; it has no way to fail. .NET's
//! `Interlocked.MemoryBarrierProcessWide` is this call on Windows, and `membarrier` on Linux.
//!
//! # Wine
//!
//! Under Wine the function does nothing: `NtFlushProcessWriteBuffers` is a stub in Wine 8.0, in
//! which the races of `dirty::marks` and `hazard` lose stores and read dropped values, and still
//! is one in the sources of later versions. A call that returns says nothing, and a race that was
//! won says little, so Wine is recognized by what only its ntdll exports, `wine_get_version`. Each
//! side then has fences of its own, as on hosts without such a call. Wine-staging's option to hide
//! these exports (`HideWineExports`) must be off.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

#[link(name = "kernel32")]
unsafe extern "system" {
    // Takes nothing, returns nothing, and accesses no memory of ours.
    safe fn FlushProcessWriteBuffers();
    fn GetModuleHandleA(name: *const c_char) -> *mut c_void;
    fn GetProcAddress(module: *mut c_void, name: *const c_char) -> *const c_void;
}

/// Whether a module of the process exports a function.
fn exports(module: &CStr, function: &CStr) -> bool {
    // SAFETY: the name is a string that ends in a zero, and is read during the call only. The
    // result is null if there is no such module.
    let module = unsafe { GetModuleHandleA(module.as_ptr()) };
    // SAFETY: the same of the name; ntdll, the only module asked for, is never unloaded, and a null
    // pointer is not passed on. The function is not called.
    !module.is_null() && !unsafe { GetProcAddress(module, function.as_ptr()) }.is_null()
}

/// Whether [`every_thread`] can be had, so that writers need no fence of their own.
pub(crate) fn available() -> bool {
    static IS_WINDOWS: OnceLock<bool> = OnceLock::new();
    *IS_WINDOWS.get_or_init(|| !exports(c"ntdll.dll", c"wine_get_version"))
}

/// Makes every running thread of this process pass a full memory barrier; returns whether it could.
pub(crate) fn every_thread() -> bool {
    let is_available = available();
    if is_available {
        FlushProcessWriteBuffers();
    }
    is_available
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_barrier_unless_wine_runs_the_program() {
        assert!(exports(c"ntdll.dll", c"NtFlushProcessWriteBuffers"));
        assert!(!exports(c"ntdll.dll", c"no such function"));
        assert!(!exports(c"no such module", c"wine_get_version"));
        // Wine's loader sets it.
        let is_wine = std::env::var_os("WINELOADER").is_some();
        assert_eq!((available(), every_thread()), (!is_wine, !is_wine));
    }
}
