//! The dirty rings of vCPUs: written pages that KVM lists, taken without a loss.
//!
//! - `ring`: one vCPU's ring, its overruns and its recovery
//! - `set`: the rings of all vCPUs, and their reset
//! - `bound`: when all vCPUs stop, as they could dirty more than they may
//!
//! Built on `sys`. It returns numbers of slots and pages, and has no access to guest memory.

pub(crate) mod bound;
#[cfg(test)]
pub(crate) mod fake_ring;
pub(crate) mod ring;
pub(crate) mod set;
