//! A virtual processor: runs guest code, and turns its exits into accesses of the buses.
//!
//! - `guarded`: what stands between a run loop, whoever's it is, and KVM_RUN
//! - `run`: the loop that turns exits into accesses of the buses
//! - `thread`: a vCPU on a thread of its own
//! - `set`: all vCPUs of a machine
//! - `state`: a vCPU's complete state, to be migrated
//! - `registers_in_page`: registers that KVM takes with the next run
//! - `kvm_msrs`: registers of KVM's that name guest memory
//! - `roll_back`: back to an earlier state of its own
//! - `run_page`: the fields of the page shared with KVM that a vCPU's owner sets
//! - `capabilities`: what KVM says once about such states
//!
//! Built on `machine`: on its gate, its rings and its queue of coalesced writes.

#[cfg(target_arch = "x86_64")]
mod capabilities;
pub(crate) mod guarded;
#[cfg(target_arch = "x86_64")]
mod kvm_msrs;
#[cfg(target_arch = "x86_64")]
mod registers_in_page;
#[cfg(target_arch = "x86_64")]
pub(crate) mod roll_back;
pub(crate) mod run;
#[cfg(target_arch = "x86_64")]
pub(crate) mod run_page;
pub(crate) mod set;
#[cfg(target_arch = "x86_64")]
pub(crate) mod state;
pub(crate) mod thread;
