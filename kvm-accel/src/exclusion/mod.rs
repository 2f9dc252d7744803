//! Keeping vCPUs out of the guest: for moments while slots change, or for a pause.
//!
//! - `run_state`: entering the guest, against somebody who wants it out
//! - `kick`: interrupting a vCPU from another thread
//! - `blocked_time`: for how long vCPUs stood still
//! - `gate`: waiting until all vCPUs are out
//! - `gated_vm`: calls about slots, with the gate for what needs guests out
//!
//! Stands on `sys`. It knows vCPUs by what other threads see of them.

pub(crate) mod blocked_time;
pub(crate) mod gate;
pub(crate) mod gated_vm;
pub(crate) mod kick;
pub(crate) mod run_state;
