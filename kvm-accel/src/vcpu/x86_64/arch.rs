//! What a vCPU of x86-64 remembers, and what KVM says once about its state.

use kvm_ioctls::{Cap, VcpuFd, VmFd};

/// What a vCPU has beside what all have.
///
/// What KVM has is asked when a vCPU is made: from then on the answers stay (KVM refuses to permit
/// more extended state to guests that have a vCPU), and a question is a system call.
#[derive(Debug)]
pub(in crate::vcpu) struct VcpuArch {
    /// The size of the extended state in bytes (KVM_CAP_XSAVE2); 0 if KVM does not say.
    pub(super) xsave_bytes: usize,
    /// The registers that KVM takes from the page shared with it (KVM_CAP_SYNC_REGS).
    pub(super) synced: i32,
    /// The next run takes registers from that page, which has them instead of KVM.
    pub(super) registers_in_page: bool,
}

impl VcpuArch {
    pub(in crate::vcpu) fn new(vm: &VmFd) -> Self {
        Self {
            xsave_bytes: usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
            synced: vm.check_extension_int(Cap::SyncRegs),
            registers_in_page: false,
        }
    }

    /// The vCPU runs no longer.
    pub(in crate::vcpu) fn loop_ended(&mut self, fd: &mut VcpuFd) {
        if self.registers_in_page {
            // A vCPU that waits to be started has not taken them.
            self.registers_in_page = fd.get_kvm_run().kvm_dirty_regs != 0;
        }
    }
}
