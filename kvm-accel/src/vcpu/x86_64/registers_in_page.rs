//! Registers that KVM takes from the page shared with it (KVM_CAP_SYNC_REGS), with the next run.

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::SyncReg;

use crate::vcpu::guarded::GuardedVcpu;

/// The registers that go with the next run.
const SYNCED: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];
/// The same, as KVM_CAP_SYNC_REGS says (KVM_SYNC_X86_*).
const SYNCED_BITS: i32 = 0b111;

impl GuardedVcpu {
    /// Whether KVM takes them.
    pub(super) fn can_put_registers_in_page(&self) -> bool {
        self.arch().synced & SYNCED_BITS == SYNCED_BITS
    }

    /// The next run takes these registers, which KVM does not have yet.
    pub(super) fn put_registers_in_page(
        &mut self,
        registers: kvm_regs,
        special: kvm_sregs,
        events: kvm_vcpu_events,
    ) {
        let mut page = self.run_page();
        let synced = page.sync_regs_mut();
        (synced.regs, synced.sregs, synced.events) = (registers, special, events);
        SYNCED.into_iter().for_each(|part| page.set_sync_dirty(part, true));
        self.arch_mut().registers_in_page = true;
    }

    /// The next run takes no registers from there.
    pub(super) fn forget_registers_in_page(&mut self) {
        if self.arch().registers_in_page {
            let mut page = self.run_page();
            SYNCED.into_iter().for_each(|part| page.set_sync_dirty(part, false));
            self.arch_mut().registers_in_page = false;
        }
    }
}
