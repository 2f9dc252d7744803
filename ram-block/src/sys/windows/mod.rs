//! Windows: what it has that `portable` does without.
//!
//! - `membarrier`: every running thread of the process passes a barrier

pub(crate) mod membarrier;
