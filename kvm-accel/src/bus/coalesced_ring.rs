//! KVM's ring of coalesced writes.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use ram_block::PageSize;

use crate::sys::mapping::VcpuMapping;

/// A write of a guest that KVM has coalesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CoalescedWrite {
    pub(crate) address: u64,
    /// Whether the address is a port's.
    pub(crate) is_port: bool,
    data: [u8; 8],
    len: usize,
}

impl CoalescedWrite {
    pub(crate) fn data(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

/// A mapping of the ring, of which there is one for each machine (KVM API, section 4.116; the
/// layout is `kvm_coalesced_mmio_ring`). KVM adds entries at `last`, this crate removes them at
/// `first`.
#[derive(Debug)]
pub(crate) struct CoalescedRing(VcpuMapping);

impl CoalescedRing {
    /// Maps the ring from a vCPU's descriptor, where it is at page `page`.
    pub(crate) fn map(vcpu: &VcpuFd, page: u32) -> io::Result<Self> {
        let len = usize::try_from(PageSize::host().bytes()).unwrap_or(usize::MAX);
        let offset = libc::off_t::from(page) << PageSize::host().shift();
        Ok(Self(VcpuMapping::new(vcpu, offset, len)?))
    }

    /// How many entries fit behind the two indices (KVM_COALESCED_MMIO_MAX).
    fn capacity(&self) -> u32 {
        let entries = self.0.len() - size_of::<kvm_coalesced_mmio_ring>();
        u32::try_from(entries / size_of::<kvm_coalesced_mmio>()).unwrap_or(0)
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: both indices lie at the beginning of the mapped page.
        let index = unsafe { self.0.start().add(offset) };
        // SAFETY: the page lives as long as `self` and is aligned; the kernel and we
        // access the indices as whole words.
        unsafe { AtomicU32::from_ptr(index.as_ptr().cast()) }
    }

    /// Takes the oldest write.
    pub(crate) fn pop(&mut self) -> Option<CoalescedWrite> {
        let capacity = self.capacity();
        let first = self.index(std::mem::offset_of!(kvm_coalesced_mmio_ring, first));
        let last = self.index(std::mem::offset_of!(kvm_coalesced_mmio_ring, last));
        let at = first.load(Ordering::Relaxed);
        // The kernel stores an entry before it moves `last` past it.
        if at == last.load(Ordering::Acquire) || at >= capacity {
            return None;
        }
        let entries = size_of::<kvm_coalesced_mmio_ring>();
        let offset = entries + at as usize * size_of::<kvm_coalesced_mmio>();
        // SAFETY: `at` is below the capacity, so the entry lies within the page.
        let entry = unsafe { self.0.start().add(offset) };
        // SAFETY: as above; the kernel does not write the entry before `first` is past it.
        let entry = unsafe { entry.cast::<kvm_coalesced_mmio>().read_volatile() };
        first.store((at + 1) % capacity, Ordering::Release);
        // SAFETY: both members of the union are the same 32 bits.
        let is_port = unsafe { entry.__bindgen_anon_1.pio } != 0;
        let len = usize::try_from(entry.len).map_or(8, |len| len.min(8));
        Some(CoalescedWrite { address: entry.phys_addr, is_port, data: entry.data, len })
    }
}
