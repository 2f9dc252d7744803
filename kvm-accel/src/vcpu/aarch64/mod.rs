//! States of vCPUs of arm64.
//!
//! - `state`: a vCPU's complete state, to be migrated, and back to an earlier one of its own
//! - `registers`: registers as KVM lists them, each with its size
//! - `arch`: what a vCPU remembers for these

pub(crate) mod arch;
pub(super) mod registers;
pub(crate) mod state;
