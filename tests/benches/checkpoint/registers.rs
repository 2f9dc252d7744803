//! A vCPU's registers by KVM's calls, one after the other.

use kvm_accel::RollBack;
use kvm_accel::kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs,
};
use kvm_accel::kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};

use crate::raw;

/// The registers that KVM takes from the page shared with it.
const SYNCED: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];
/// The time-stamp counter: of the model-specific registers the one that each run changes.
const TIME: u32 = 0x10;

/// All of a vCPU that has neither a local APIC nor nested guests.
pub struct Registers {
    registers: kvm_regs,
    special: kvm_sregs,
    msrs: Msrs,
    time: Msrs,
    /// Registers to be read, and then read.
    now: Msrs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    mp_state: kvm_mp_state,
}

fn entry(index: u32) -> kvm_msr_entry {
    kvm_msr_entry { index, ..Default::default() }
}

/// Those of `indices` that can be read, and set to what they are.
fn usable_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Msrs {
    let usable = |index: &u32| {
        let mut one = Msrs::from_entries(&[entry(*index)]).unwrap();
        let is_read = vcpu.get_msrs(&mut one).unwrap() == 1;
        (is_read && vcpu.set_msrs(&one).unwrap() == 1).then(|| one.as_slice()[0])
    };
    let entries: Vec<_> = indices.iter().filter_map(usable).collect();
    Msrs::from_entries(&entries).unwrap()
}

impl Registers {
    /// The registers as they are, of the model-specific ones those at `indices`.
    pub fn save(vm: &VmFd, vcpu: &VcpuFd, indices: &[u32]) -> Self {
        let mut msrs = usable_msrs(vcpu, indices);
        let count = vcpu.get_msrs(&mut msrs).unwrap();
        assert_eq!(count, msrs.as_slice().len());
        let time = *msrs.as_slice().iter().find(|msr| msr.index == TIME).unwrap();
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap();
        Self {
            registers: vcpu.get_regs().unwrap(),
            special: vcpu.get_sregs().unwrap(),
            now: msrs.clone(),
            time: Msrs::from_entries(&[time]).unwrap(),
            msrs,
            xsave: raw::get_xsave(vcpu, bytes),
            xcrs: vcpu.get_xcrs().unwrap(),
            events: vcpu.get_vcpu_events().unwrap(),
            debug: vcpu.get_debug_regs().unwrap(),
            mp_state: vcpu.get_mp_state().unwrap(),
        }
    }

    /// Sets all registers, as it is written by hand.
    pub fn set_all(&self, vcpu: &VcpuFd) {
        vcpu.set_sregs(&self.special).unwrap();
        vcpu.set_xcrs(&self.xcrs).unwrap();
        raw::set_xsave(vcpu, &self.xsave);
        vcpu.set_debug_regs(&self.debug).unwrap();
        assert_eq!(vcpu.set_msrs(&self.msrs).unwrap(), self.msrs.as_slice().len());
        vcpu.set_mp_state(self.mp_state).unwrap();
        vcpu.set_regs(&self.registers).unwrap();
        vcpu.set_vcpu_events(&self.events).unwrap();
    }

    /// The calls that a reset cannot do without: the model-specific registers are read, and the
    /// time-stamp counter is set.
    pub fn set_needed(&mut self, vcpu: &mut VcpuFd, when: RollBack) {
        if when == RollBack::Now {
            vcpu.set_sregs(&self.special).unwrap();
        }
        vcpu.set_xcrs(&self.xcrs).unwrap();
        raw::set_xsave(vcpu, &self.xsave);
        vcpu.set_debug_regs(&self.debug).unwrap();
        vcpu.get_msrs(&mut self.now).unwrap();
        assert_eq!(vcpu.set_msrs(&self.time).unwrap(), 1);
        vcpu.set_mp_state(self.mp_state).unwrap();
        if when == RollBack::Now {
            vcpu.set_regs(&self.registers).unwrap();
            vcpu.set_vcpu_events(&self.events).unwrap();
            return;
        }
        let page = vcpu.sync_regs_mut();
        page.regs = self.registers;
        page.sregs = self.special;
        page.events = self.events;
        SYNCED.into_iter().for_each(|part| vcpu.set_sync_dirty_reg(part));
    }
}
