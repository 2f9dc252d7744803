//! The host: memory, its pages, and barriers.
//!
//! - `huge_pages`: the page sizes that can be asked for
//! - `volatile`: bytes that others access at the same time, copied, touched and zeroed in place
//! - `linux`: by Linux's system calls
//! - `portable`: for all other hosts, by the allocator of the program
//! - `windows`: the barrier that Windows has, in place of `portable`'s
//!
//! Each host has one each of the modules `mapping`, which is memory; `data`, where it holds any;
//! and `membarrier`, a barrier of all threads of the process. Those of one name have the same
//! interface.
//!
//! Built on `page` alone. It has no blocks, clients or bits.

pub(crate) mod huge_pages;
#[cfg(target_os = "linux")]
pub(crate) mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;
pub(crate) mod volatile;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::{data, mapping, membarrier};
#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) use portable::membarrier;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::{data, mapping};
#[cfg(windows)]
pub(crate) use windows::membarrier;
