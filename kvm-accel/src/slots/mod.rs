//! KVM's memory slots, kept equal to the RAM of a flat view, and their dirty log.
//!
//! - `aligned_words`: a buffer to which the kernel copies fast
//! - `bitmap`: a slot's log as KVM reported it
//! - `table`: the slots in use
//! - `dirty_log`: harvesting and clearing their log, by bitmap, manual protection and rings
//! - `commit`: applying a change of the view
//! - `removal`: deleting all slots when their machine is dropped
//!
//! Built on `dirty_ring` and on `sys`. It calls KVM through a trait, which tests implement.

mod aligned_words;
mod bitmap;
pub(crate) mod commit;
mod dirty_log;
pub(crate) mod owned;
mod removal;
pub(crate) mod table;
#[cfg(test)]
mod tests;
