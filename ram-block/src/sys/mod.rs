//! System calls: memory, its pages, and barriers.
//!
//! - `mapping`: maps and unmaps host memory
//! - `populate` and `discard`: allocate the pages of a mapping, and free them
//! - `holes`: which parts of a file's copy were discarded
//! - `pagemap`: which pages exist, found without touching them
//! - `membarrier`: every running thread of the process passes a barrier
//!
//! Built on `page` alone. It has no blocks, clients or bits.

mod discard;
mod holes;
pub(crate) mod mapping;
pub(crate) mod membarrier;
pub(crate) mod pagemap;
mod populate;
