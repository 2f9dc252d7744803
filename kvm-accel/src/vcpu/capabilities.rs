//! What KVM says once about the states of a machine's vCPUs.

use kvm_ioctls::{Cap, VmFd};

/// Asked when a vCPU is made: from then on the answers stay (KVM refuses to permit more extended
/// state to guests that have a vCPU), and a question is a system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    /// The size of the extended state in bytes (KVM_CAP_XSAVE2); 0 if KVM does not say.
    pub(super) xsave_bytes: usize,
    /// The registers that KVM takes from the page shared with it (KVM_CAP_SYNC_REGS).
    pub(super) synced: i32,
}

impl Capabilities {
    pub(super) fn of(vm: &VmFd) -> Self {
        Self {
            xsave_bytes: usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
            synced: vm.check_extension_int(Cap::SyncRegs),
        }
    }
}
