//! The fields of the page shared with KVM that a vCPU's owner sets.

use kvm_bindings::kvm_sync_regs;
use kvm_ioctls::{SyncReg, VcpuFd};

/// The fields of `struct kvm_run` that a vCPU's owner may read and set between two runs.
///
/// KVM's own fields (the exit reason, where the exit's data is) are left out: code that follows the
/// pointers in them relies on that only the kernel has written them.
#[derive(Debug)]
pub struct RunPage<'a>(&'a mut VcpuFd);

impl<'a> RunPage<'a> {
    pub(crate) fn new(fd: &'a mut VcpuFd) -> Self {
        Self(fd)
    }

    /// Asks KVM to exit as soon as the guest can take an interrupt (`VcpuExit::IrqWindowOpen`), or
    /// no longer to. For VMMs that have the interrupt controller in user space.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.0.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Whether KVM could inject an interrupt when it last exited.
    pub fn is_ready_for_interrupt(&mut self) -> bool {
        self.0.get_kvm_run().ready_for_interrupt_injection != 0
    }

    /// Whether the guest had interrupts enabled when KVM last exited.
    pub fn has_interrupts_enabled(&mut self) -> bool {
        self.0.get_kvm_run().if_flag != 0
    }

    /// KVM_RUN_X86_* of the last exit.
    pub fn flags(&mut self) -> u16 {
        self.0.get_kvm_run().flags
    }

    /// The task's priority (CR8) at the last exit.
    pub fn cr8(&mut self) -> u64 {
        self.0.get_kvm_run().cr8
    }

    /// Sets the task's priority for the next run. KVM uses it only without a local APIC of its own.
    pub fn set_cr8(&mut self, priority: u64) {
        self.0.get_kvm_run().cr8 = priority;
    }

    /// The base of the local APIC at the last exit.
    pub fn apic_base(&mut self) -> u64 {
        self.0.get_kvm_run().apic_base
    }

    /// Lets each exit copy these registers to [`sync_regs`](Self::sync_regs), or no longer.
    pub fn set_sync_valid(&mut self, registers: SyncReg, valid: bool) {
        if valid {
            self.0.set_sync_valid_reg(registers);
        } else {
            self.0.clear_sync_valid_reg(registers);
        }
    }

    /// Lets the next run take these registers from [`sync_regs_mut`](Self::sync_regs_mut), or
    /// not.
    pub fn set_sync_dirty(&mut self, registers: SyncReg, dirty: bool) {
        if dirty {
            self.0.set_sync_dirty_reg(registers);
        } else {
            self.0.clear_sync_dirty_reg(registers);
        }
    }

    /// The registers that the last exit copied.
    pub fn sync_regs(&self) -> kvm_sync_regs {
        self.0.sync_regs()
    }

    /// The same, to be changed for the next run.
    pub fn sync_regs_mut(&mut self) -> &mut kvm_sync_regs {
        self.0.sync_regs_mut()
    }
}
