//! The dirty rings of vCPUs: written pages that KVM lists, taken without a loss.
//!
//! - `ring`: one vCPU's ring, its overruns and its recovery
//! - `set`: those of all vCPUs, and their reset
//!
//! Stands on `sys`. It hands out numbers of slots and pages, and knows no memory.

#[cfg(test)]
pub(crate) mod fake_ring;
pub(crate) mod ring;
pub(crate) mod set;
