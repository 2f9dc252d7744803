//! An entry of a dirty ring as KVM lays it out.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// An entry as KVM writes it (`struct kvm_dirty_gfn`).
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) flags: AtomicU32,
    /// The slot's number; the address space in the upper 16 bits.
    pub(crate) slot: AtomicU32,
    /// The page within the slot.
    pub(crate) page: AtomicU64,
}

/// KVM_DIRTY_GFN_F_DIRTY.
pub(crate) const DIRTY: u32 = 1;
/// KVM_DIRTY_GFN_F_RESET.
pub(crate) const RESET: u32 = 2;
