//! All hosts but Linux: memory of the program's allocator.
//!
//! - `mapping`: allocates memory, and frees it
//! - `data`: where memory holds data, which is not known
//! - `membarrier`: whether a barrier of all threads can be had, but for Windows

pub(crate) mod data;
pub(crate) mod mapping;
#[cfg(not(windows))]
pub(crate) mod membarrier;
