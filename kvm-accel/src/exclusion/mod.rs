//! Keeping vCPUs out of the guest: for moments while slots change, or for a pause.
//!
//! - `run_state`: entering the guest, against a concurrent request to exit
//! - `kick`: interrupting a vCPU from another thread
//! - `blocked_time`: the time that vCPUs were blocked
//! - `gate`: waiting until all vCPUs are out of the guest
//! - `gated_vm`: KVM's calls about slots, with the gate for those that need guests out
//!
//! Built on `sys`. It knows vCPUs only by what other threads see of them (`VcpuShared`).

pub(crate) mod blocked_time;
pub(crate) mod gate;
pub(crate) mod gated_vm;
pub(crate) mod kick;
pub(crate) mod run_state;
