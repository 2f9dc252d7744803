//! What is asked of the kernel: memory, its pages, and barriers.
//!
//! - `mapping`: host memory is mapped here, and unmapped here
//! - `populate` and `discard`: pages are given to a mapping, and taken from it
//! - `holes`: which parts of a file's copy were discarded
//! - `pagemap`: which pages there are, asked without touching them
//! - `membarrier`: every running thread of the process passes a barrier
//!
//! Stands on `page` alone. It knows nothing of blocks, clients and bits.

mod discard;
mod holes;
pub(crate) mod mapping;
pub(crate) mod membarrier;
pub(crate) mod pagemap;
mod populate;
