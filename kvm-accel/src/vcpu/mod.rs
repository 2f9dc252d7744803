//! A virtual processor: runs guest code, and turns its exits into accesses of the buses.
//!
//! - `guarded`: what stands between a run loop, whoever's it is, and KVM_RUN
//! - `run`: the loop that turns exits into accesses of the buses
//! - `thread`: a vCPU on a thread of its own
//! - `set`: all vCPUs of a machine
//! - `state`: what saving and restoring have in common everywhere
//! - `x86_64`, `aarch64`: the states of such vCPUs; `other`: none
//!
//! Built on `machine`: on its gate, its rings and its queue of coalesced writes.

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
pub(crate) mod guarded;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod other;
pub(crate) mod run;
pub(crate) mod set;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) mod state;
pub(crate) mod thread;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64::arch::VcpuArch;
#[cfg(target_arch = "aarch64")]
pub use aarch64::state::VcpuState;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use other::VcpuArch;
#[cfg(target_arch = "x86_64")]
use x86_64::arch::VcpuArch;
#[cfg(target_arch = "x86_64")]
pub use x86_64::state::VcpuState;
