//! The host: memory, its pages, and barriers.
//!
//! - `huge_pages`: the page sizes that can be asked for
//! - `volatile`: bytes that others access at the same time, copied, touched and zeroed in place
//! - `linux`: by Linux's system calls
//! - `portable`: for all other hosts, by the allocator of the program
//!
//! `linux` and `portable` have the same interface, and one of them is compiled: `mapping`, which
//! is memory; `data`, where it holds any; `membarrier`, a barrier of all threads of the process.
//!
//! Built on `page` alone. It has no blocks, clients or bits.

pub(crate) mod huge_pages;
#[cfg(target_os = "linux")]
pub(crate) mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;
pub(crate) mod volatile;

#[cfg(not(target_os = "linux"))]
pub(crate) use portable::{data, mapping, membarrier};

#[cfg(target_os = "linux")]
pub(crate) use linux::{data, mapping, membarrier};
