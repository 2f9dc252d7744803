//! A vCPU's complete state, to be migrated.

use std::fmt;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_FORMAT_VMX, Msrs,
    Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_vmx_nested_state_hdr, kvm_xcrs, nested::KvmNestedStateBuffer,
};
use kvm_ioctls::{Cap, VcpuFd};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::error::KvmError;
use crate::sys::ioctl;
use crate::vcpu::guarded::GuardedVcpu;
use crate::vcpu::state::{failed, impossible};

/// The state of a vCPU: registers, special and model-specific registers, extended state, pending
/// events, debug registers, local APIC if KVM has it, the scheduling state (`mp_state`), and the
/// nested state if the guest can run guests of its own.
///
/// [`Vcpu::save`](crate::Vcpu::save) returns it, and [`Vcpu::restore`](crate::Vcpu::restore) gives
/// it to another vCPU. With the feature `serde` it is serialized by serde, in any format. A state
/// that was received may hold anything: KVM refuses values that it cannot take.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VcpuState {
    pub(super) cpuid: CpuId,
    pub(super) tsc_khz: Option<u32>,
    pub(super) registers: kvm_regs,
    pub(super) special: kvm_sregs,
    /// The nested state, if KVM supports it.
    pub(super) nested: Option<KvmNestedStateBuffer>,
    pub(super) msrs: Vec<kvm_msr_entry>,
    pub(super) xsave: Xsave,
    pub(super) xcrs: kvm_xcrs,
    pub(super) events: kvm_vcpu_events,
    pub(super) debug: kvm_debugregs,
    pub(super) mp_state: Option<kvm_mp_state>,
    pub(super) lapic: Option<kvm_lapic_state>,
}

impl VcpuState {
    /// The address of the next instruction.
    pub fn instruction_pointer(&self) -> u64 {
        self.registers.rip
    }
}

impl fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuState")
            .field("registers", &self.registers)
            .field("msrs", &self.msrs.len())
            .finish_non_exhaustive()
    }
}

impl GuardedVcpu {
    /// Saves the vCPU's state, while it does not run.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM does not return a part of it, or if an access of the guest is not
    /// complete. After [`VcpuRun::Kicked`](crate::VcpuRun::Kicked), and after a halt, the state is
    /// complete.
    pub fn save(&self) -> Result<VcpuState, KvmError> {
        self.check_complete()?;
        let (id, fd) = (self.id(), self.fd());
        // The local APIC and the scheduling state first: reading them may change pending events.
        let mp_state = fd.get_mp_state().ok();
        let lapic = fd.get_lapic().ok();
        let (registers, special, events) = match self.arch().registers_in_page {
            true => {
                let page = fd.sync_regs();
                (page.regs, page.sregs, page.events)
            }
            false => (
                failed(id, "registers", fd.get_regs())?,
                failed(id, "special registers", fd.get_sregs())?,
                failed(id, "events", fd.get_vcpu_events())?,
            ),
        };
        Ok(VcpuState {
            cpuid: failed(id, "CPUID", fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?,
            tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz != 0),
            registers,
            special,
            nested: self.save_nested()?,
            msrs: save_msrs(id, fd)?,
            xsave: self.save_xsave()?,
            xcrs: failed(id, "extended control registers", fd.get_xcrs())?,
            events,
            debug: failed(id, "debug registers", fd.get_debug_regs())?,
            mp_state,
            lapic,
        })
    }

    /// Makes this vCPU, which has not run yet, continue where the other one was saved.
    ///
    /// Guest memory must be restored before this: of a guest with PAE paging, KVM reads the
    /// page-directory pointers there. The time-stamp counter continues from its saved value.
    ///
    /// # Errors
    ///
    /// [`KvmError::State`] if KVM refuses a part of it (from another model of processor, or no
    /// state of a vCPU at all), or if this vCPU has run and an access of its guest is not complete.
    /// The vCPU is not fit to run then.
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        self.check_complete()?;
        self.forget_registers_in_page();
        let (id, fd) = (self.id(), self.fd());
        failed(id, "CPUID", fd.set_cpuid2(&state.cpuid))?;
        if let Some(khz) = state.tsc_khz {
            if fd.get_tsc_khz().ok() != Some(khz) {
                failed(id, "frequency of the time-stamp counter", fd.set_tsc_khz(khz))?;
            }
        }
        // The base of the local APIC is a special register; its timer reads model-specific ones;
        // nested state needs a feature unlocked, and what follows may belong to the nested guest;
        // events are last, as setting the others may raise or drop some.
        failed(id, "special registers", fd.set_sregs(&state.special))?;
        let unlocks = |msr: &&kvm_msr_entry| msr.index == FEATURE_CONTROL;
        restore_msrs(id, fd, state.msrs.iter().find(unlocks).map_or(&[], std::slice::from_ref))?;
        restore_nested(id, fd, state.nested.as_ref())?;
        failed(id, "extended control registers", fd.set_xcrs(&state.xcrs))?;
        self.restore_xsave(&state.xsave)?;
        let fd = self.fd();
        failed(id, "registers", fd.set_regs(&state.registers))?;
        failed(id, "debug registers", fd.set_debug_regs(&state.debug))?;
        if let Some(lapic) = &state.lapic {
            failed(id, "local APIC", fd.set_lapic(lapic))?;
        }
        restore_msrs(id, fd, &state.msrs)?;
        if let Some(mp_state) = state.mp_state {
            failed(id, "scheduling state", fd.set_mp_state(mp_state))?;
        }
        failed(id, "events", fd.set_vcpu_events(&state.events))?;
        // Without a local APIC in KVM, KVM_RUN takes the task's priority from here.
        self.run_page().set_cr8(state.special.cr8);
        Ok(())
    }

    fn save_xsave(&self) -> Result<Xsave, KvmError> {
        let saved = ioctl::get_xsave(self.fd(), self.arch().xsave_bytes);
        saved.map_err(|source| KvmError::State { id: self.id(), part: "extended state", source })
    }

    fn save_nested(&self) -> Result<Option<KvmNestedStateBuffer>, KvmError> {
        if !self.machine().fd().check_extension(Cap::NestedState) {
            return Ok(None);
        }
        let mut state = KvmNestedStateBuffer::empty();
        failed(self.id(), NESTED, self.fd().nested_state(&mut state))?;
        Ok(Some(state))
    }

    pub(super) fn restore_xsave(&self, xsave: &Xsave) -> Result<(), KvmError> {
        let set = ioctl::set_xsave(self.fd(), self.arch().xsave_bytes, xsave);
        set.map_err(|source| KvmError::State { id: self.id(), part: "extended state", source })
    }
}

/// The name of the nested state in errors.
const NESTED: &str = "nested state";
/// KVM_STATE_NESTED_GIF_SET: interrupts are not held back by the guest's CLGI.
const GIF_SET: u16 = 1 << 8;
/// IA32_FEATURE_CONTROL (Intel's manual, volume 4): whether a guest may run guests of its own.
const FEATURE_CONTROL: u32 = 0x3a;

pub(super) fn restore_nested(
    id: u64,
    fd: &VcpuFd,
    state: Option<&KvmNestedStateBuffer>,
) -> Result<(), KvmError> {
    const MAX_BYTES: usize = size_of::<KvmNestedStateBuffer>();
    match state {
        None => Ok(()),
        // KVM reads as many bytes as the state's own size says.
        Some(state) if state.size as usize > MAX_BYTES => {
            let why = format!("{} bytes, where there are {MAX_BYTES}", state.size);
            Err(impossible(id, NESTED, &why))
        }
        Some(state) => failed(id, NESTED, fd.set_nested_state(state)),
    }
}

/// Takes a vCPU that may run a guest of its guest back into its guest: special registers that are
/// set while it runs the nested one are the nested one's, and leaving that brings those back which
/// the guest had when it entered it.
///
/// `state` tells which of the processor's extensions KVM plays; the vCPU is as one that never used
/// it then (KVM's api.rst, KVM_SET_NESTED_STATE: without KVM_STATE_NESTED_GUEST_MODE, and with a
/// `vmxon_pa` of all ones).
pub(super) fn leave_nested(
    id: u64,
    fd: &VcpuFd,
    state: Option<&KvmNestedStateBuffer>,
) -> Result<(), KvmError> {
    let Some(format) = state.map(|state| state.format) else { return Ok(()) };
    let mut none = KvmNestedStateBuffer::empty();
    none.format = format;
    match u32::from(format) {
        KVM_STATE_NESTED_FORMAT_VMX => {
            let none_at = u64::MAX;
            none.hdr.vmx = kvm_vmx_nested_state_hdr {
                vmxon_pa: none_at,
                vmcs12_pa: none_at,
                ..Default::default()
            };
        }
        KVM_STATE_NESTED_FORMAT_SVM => none.flags = GIF_SET,
        // Restoring it says what is wrong.
        _ => return Ok(()),
    }
    failed(id, NESTED, fd.set_nested_state(&none))
}

/// The name of the state of model-specific registers in errors.
pub(super) const MSRS: &str = "model-specific registers";
/// The most registers of a call: KVM refuses 256.
pub(super) const MAX_MSRS: usize = 255;

pub(super) fn entry(index: u32) -> kvm_msr_entry {
    kvm_msr_entry { index, ..Default::default() }
}

/// The registers that KVM has and does not list: memory types and machine checks, whose number is
/// in other registers (Intel's manual, volume 4).
fn unlisted_msrs(fd: &VcpuFd) -> Vec<u32> {
    const MTRR_CAP: u32 = 0xfe;
    const MCG_CAP: u32 = 0x179;
    let count = |index| {
        let mut one = Msrs::from_entries(&[entry(index)]).ok()?;
        let got = fd.get_msrs(&mut one).ok()? == 1;
        u32::try_from(one.as_slice()[0].data & 0xff).ok().filter(|_| got)
    };
    let (ranges, banks) = (count(MTRR_CAP).unwrap_or(0), count(MCG_CAP).unwrap_or(0));
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
    let variable = 0x200..0x200 + 2 * ranges.min(0x28);
    // The default type, which switches them on, is the last of them.
    let memory_types = fixed.chain(variable).chain([0x2ff]);
    memory_types.chain(0x400..0x400 + 4 * banks.min(0x20)).collect()
}

/// All model-specific registers that KVM and the vCPU have.
fn save_msrs(id: u64, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>, KvmError> {
    const PART: &str = MSRS;
    let list = failed(id, PART, ioctl::listed_msrs())?;
    let listed = list.as_slice().iter().copied();
    let unlisted = unlisted_msrs(fd).into_iter().filter(|index| !list.as_slice().contains(index));
    let mut left: Vec<kvm_msr_entry> = listed.chain(unlisted).map(entry).collect();
    let mut saved = Vec::new();
    // KVM stops at the first register that this vCPU does not have.
    while !left.is_empty() {
        let some = left.len().min(MAX_MSRS);
        let mut msrs = Msrs::from_entries(&left[..some])
            .map_err(|error| impossible(id, PART, &format!("{error:?}")))?;
        let count = failed(id, PART, fd.get_msrs(&mut msrs))?.min(some);
        saved.extend_from_slice(&msrs.as_slice()[..count]);
        let skipped = usize::from(count < some);
        left.drain(..count + skipped);
    }
    Ok(saved)
}

/// Sets the registers. One that KVM refuses is skipped if it has the value already.
pub(super) fn restore_msrs(id: u64, fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), KvmError> {
    const PART: &str = MSRS;
    let wrong = |error| impossible(id, PART, &format!("{error:?}"));
    let mut left = msrs;
    while !left.is_empty() {
        let most = left.len().min(MAX_MSRS);
        let some = Msrs::from_entries(&left[..most]).map_err(wrong)?;
        let count = failed(id, PART, fd.set_msrs(&some))?.min(most);
        left = &left[count..];
        if count == most {
            continue;
        }
        if let Some((refused, rest)) = left.split_first() {
            let index = refused.index;
            let mut now = Msrs::from_entries(&[entry(index)]).map_err(wrong)?;
            let has = fd.get_msrs(&mut now).unwrap_or(0) == 1;
            if !has || now.as_slice()[0].data != refused.data {
                let why = format!("KVM refuses {:#x} in MSR {index:#x}", refused.data);
                return Err(impossible(id, PART, &why));
            }
            left = rest;
        }
    }
    Ok(())
}
