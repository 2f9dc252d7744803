//! The memory map of a machine: its tree, address spaces and listeners; how a transaction is
//! committed, and how dirty logs are switched, synced and harvested.

mod alias_offset;
pub(crate) mod commit;
pub(crate) mod dirty_log;
pub(crate) mod global_log_claim;
pub(crate) mod log_claim;
pub(crate) mod memory_map;
pub(crate) mod mtree;
