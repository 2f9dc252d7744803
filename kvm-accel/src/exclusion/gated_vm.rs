//! KVM's calls about slots, of a machine whose vCPUs can be kept out of the guest.

use std::io;

use kvm_ioctls::VmFd;
use ram_block::RamBlock;

use crate::exclusion::gate::Gate;
use crate::sys::ioctl::{SlotCalls, SlotRegion};

/// A machine's descriptor, and the gate of its vCPUs.
pub(crate) struct GatedVm<'a> {
    pub(crate) fd: &'a VmFd,
    pub(crate) gate: &'a Gate,
}

impl SlotCalls for GatedVm<'_> {
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
        SlotCalls::get_dirty_log(self.fd, slot, pages, bitmap)
    }

    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()> {
        self.fd.clear_dirty_log(slot, first, count, bitmap)
    }

    fn reset_rings(&self) -> io::Result<u64> {
        self.fd.reset_rings()
    }

    /// May be called with the slots locked: a vCPU takes that lock neither to leave the guest nor
    /// to wait for entering it again.
    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        self.gate.exclude(work)
    }

    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()> {
        self.fd.set_slot(region, block)
    }
}
