//! What saving and restoring the states of vCPUs have in common everywhere.

use std::io;

use crate::error::KvmError;
use crate::vcpu::guarded::GuardedVcpu;

/// When [`Vcpu::roll_back`](crate::Vcpu::roll_back) gives KVM a vCPU's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RollBack {
    /// At once: [`Vcpu::fd`](crate::Vcpu::fd) shows them.
    Now,
    /// Registers, special registers and pending events with the next run, which saves three system
    /// calls on x86; all else at once. [`Vcpu::save`](crate::Vcpu::save) knows of them. Until then
    /// [`Vcpu::fd`](crate::Vcpu::fd) shows the former ones, and those that are set there are lost.
    /// As `Now` where KVM cannot do it.
    WithNextRun,
}

/// Names a part of the state in an error.
pub(super) fn failed<T>(
    id: u64,
    part: &'static str,
    result: Result<T, kvm_ioctls::Error>,
) -> Result<T, KvmError> {
    result.map_err(|error| KvmError::State { id, part, source: error.into() })
}

pub(super) fn impossible(id: u64, part: &'static str, why: &str) -> KvmError {
    KvmError::State { id, part, source: io::Error::other(why.to_owned()) }
}

impl GuardedVcpu {
    /// An access that KVM would complete in the next run belongs to the state that it began in.
    pub(super) fn check_complete(&self) -> Result<(), KvmError> {
        if self.is_incomplete() {
            return Err(impossible(self.id(), "the access under way", "it is not complete"));
        }
        Ok(())
    }
}
