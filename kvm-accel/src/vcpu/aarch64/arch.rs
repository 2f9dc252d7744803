//! What a vCPU of arm64 remembers: how it was initialized, which KVM does not tell.

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Cap, VcpuFd, VmFd};

/// What a vCPU has beside what all have.
#[derive(Debug)]
pub(in crate::vcpu) struct VcpuArch {
    /// The target and the features that it was initialized with.
    pub(super) init: Option<kvm_vcpu_init>,
    /// Whether KVM tells of a pending SError (KVM_CAP_VCPU_EVENTS).
    pub(super) has_events: bool,
}

impl VcpuArch {
    pub(in crate::vcpu) fn new(vm: &VmFd) -> Self {
        Self { init: None, has_events: vm.check_extension(Cap::VcpuEvents) }
    }

    /// The vCPU runs no longer.
    pub(in crate::vcpu) fn loop_ended(&mut self, _: &mut VcpuFd) {}
}
