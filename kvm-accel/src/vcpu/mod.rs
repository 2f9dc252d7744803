//! A virtual processor: guest code in, accesses of the buses out.
//!
//! - `run`: the loop that enters the guest and deals with its exits
//! - `thread`: a vCPU on a thread of its own
//! - `state`: a vCPU's complete state, to be carried to another machine
//! - `run_page`: what its owner sets in the page that it shares with KVM
//!
//! Stands on `machine`, for the gate, the rings and the gathered writes.

pub(crate) mod run;
#[cfg(target_arch = "x86_64")]
pub(crate) mod run_page;
#[cfg(target_arch = "x86_64")]
pub(crate) mod state;
pub(crate) mod thread;
