//! Linux: mappings, their pages, and the barrier of the kernel.
//!
//! - `mapping`: maps and unmaps host memory
//! - `populate` and `discard`: allocate the pages of a mapping, and free them
//! - `holes`: which parts of a file's copy were discarded
//! - `pagemap`: which pages exist, found without touching them
//! - `data`: where a mapping has data, by its page map and its file
//! - `membarrier`: every running thread of the process passes a barrier

pub(crate) mod data;
mod discard;
mod holes;
pub(crate) mod mapping;
pub(crate) mod membarrier;
pub(crate) mod pagemap;
mod populate;
