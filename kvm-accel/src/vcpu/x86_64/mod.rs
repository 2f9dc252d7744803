//! States of vCPUs of x86-64.
//!
//! - `state`: a vCPU's complete state, to be migrated
//! - `roll_back`: back to an earlier state of its own
//! - `registers_in_page`: registers that KVM takes with the next run
//! - `kvm_msrs`: registers of KVM's that name guest memory
//! - `run_page`: the fields of the page shared with KVM that a vCPU's owner sets
//! - `arch`: what a vCPU remembers for these, and what KVM says once about them

pub(crate) mod arch;
mod kvm_msrs;
mod registers_in_page;
mod roll_back;
pub(crate) mod run_page;
pub(crate) mod state;
