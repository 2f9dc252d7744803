//! Putting a vCPU back to an earlier state of its own, as fast as KVM takes it.
//!
//! Each part of a state is a system call, in which KVM loads the vCPU's context on the processor
//! and puts it away again: half a microsecond on bare metal, and five or more in a guest of another
//! hypervisor. So what cannot have changed is left alone (the CPUID, the frequency of the
//! time-stamp counter, nested state without the instructions for it), model-specific registers are
//! compared, as setting some of them is dear, and the registers that KVM takes from the page shared
//! with it (KVM_CAP_SYNC_REGS) may go with the next KVM_RUN.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::KvmError;
use crate::vcpu::guarded::GuardedVcpu;
use crate::vcpu::state::{RollBack, failed, impossible};
use crate::vcpu::x86_64::kvm_msrs::NamedMemory;
use crate::vcpu::x86_64::state::{
    MAX_MSRS, MSRS, VcpuState, entry, leave_nested, restore_msrs, restore_nested,
};

impl GuardedVcpu {
    /// Puts this vCPU, which may have run since, back to a state that was [saved](Self::save) of
    /// it. The time-stamp counter goes on from its saved value, too. (KVM takes a value within a
    /// second of what the counter has for an attempt to synchronize it, and lets it go on.)
    ///
    /// What KVM writes to guest memory as its own registers are set, clocks of guests that know
    /// them, is undone.
    ///
    /// Guest memory must have been put back before this, as for [`restore`](Self::restore). A state
    /// of another vCPU is for `restore`.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM refuses a part of it, or if an access of the guest is not
    /// complete. The vCPU is not fit to run then; another call may succeed.
    pub fn roll_back(&mut self, state: &VcpuState, when: RollBack) -> Result<(), KvmError> {
        self.check_complete()?;
        self.forget_registers_in_page();
        let with_next_run = when == RollBack::WithNextRun && self.can_wait(state);
        let (id, fd) = (self.id(), self.fd());
        let nests = can_nest(&state.cpuid);
        if nests {
            leave_nested(id, fd, state.nested.as_ref())?;
        }
        // In the order of `restore`, whose reasons hold here.
        if !with_next_run {
            failed(id, "special registers", fd.set_sregs(&state.special))?;
        }
        if nests {
            restore_nested(id, fd, state.nested.as_ref())?;
        }
        failed(id, "extended control registers", fd.set_xcrs(&state.xcrs))?;
        self.restore_xsave(&state.xsave)?;
        let fd = self.fd();
        failed(id, "debug registers", fd.set_debug_regs(&state.debug))?;
        if let Some(lapic) = &state.lapic {
            failed(id, "local APIC", fd.set_lapic(lapic))?;
        }
        let msrs = msrs_to_set(id, fd, &state.msrs)?;
        let named = NamedMemory::read(self.machine(), &msrs);
        let set = restore_msrs(id, fd, &msrs);
        named.put_back();
        set?;
        if let Some(mp_state) = state.mp_state {
            failed(id, "scheduling state", fd.set_mp_state(mp_state))?;
        }
        if with_next_run {
            self.put_registers_in_page(state.registers, state.special, state.events);
        } else {
            failed(id, "registers", fd.set_regs(&state.registers))?;
            failed(id, "events", fd.set_vcpu_events(&state.events))?;
        }
        self.run_page().set_cr8(state.special.cr8);
        Ok(())
    }

    /// Whether the special registers may follow the rest of the state.
    fn can_wait(&mut self, state: &VcpuState) -> bool {
        // The local APIC's registers are those at its base; nested state needs the registers.
        self.can_put_registers_in_page()
            && self.run_page().apic_base() == state.special.apic_base
            && !can_nest(&state.cpuid)
    }
}

/// Whether a guest with this CPUID may run guests of its own: VMX (Intel's manual, volume 2, CPUID)
/// or SVM (AMD's, volume 3, appendix E).
fn can_nest(cpuid: &CpuId) -> bool {
    const VMX: (u32, u32) = (1, 1 << 5);
    const SVM: (u32, u32) = (0x8000_0001, 1 << 2);
    let has = |(function, bit): (u32, u32)| {
        cpuid.as_slice().iter().any(|leaf| leaf.function == function && leaf.ecx & bit != 0)
    };
    has(VMX) || has(SVM)
}

/// The time-stamp counter's value at which the local APIC's timer fires (Intel's manual, volume 4).
const TSC_DEADLINE: u32 = 0x6e0;

/// Those of the registers that have other values now, or have to be set all the same.
fn msrs_to_set(
    id: u64,
    fd: &VcpuFd,
    msrs: &[kvm_msr_entry],
) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let wrong = |error| impossible(id, MSRS, &format!("{error:?}"));
    let mut changed = Vec::new();
    for some in msrs.chunks(MAX_MSRS) {
        let asked: Vec<_> = some.iter().map(|msr| entry(msr.index)).collect();
        let mut now = Msrs::from_entries(&asked).map_err(wrong)?;
        let count = failed(id, MSRS, fd.get_msrs(&mut now))?.min(some.len());
        // A deadline is armed by the counter as it is when the deadline is set: the counter goes
        // back before it does, as it is earlier in the list.
        let differs = |(saved, now): &(&kvm_msr_entry, &kvm_msr_entry)| {
            saved.data != now.data || saved.index == TSC_DEADLINE && saved.data != 0
        };
        let pairs = some.iter().zip(&now.as_slice()[..count]);
        changed.extend(pairs.filter(differs).map(|(saved, _)| *saved));
        // One that cannot be read now could be when it was saved.
        changed.extend(&some[count..]);
    }
    Ok(changed)
}
