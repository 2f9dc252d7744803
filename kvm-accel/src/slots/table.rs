//! The table of the slots in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use ram_block::{PageSize, RamBlock};

use crate::dirty_ring::bound::DirtyBound;
use crate::dirty_ring::ring::Entries;
use crate::dirty_ring::set::Rings;
use crate::error::KvmError;
use crate::slots::bitmap::SlotBitmap;
use crate::stats::DirtyLogStats;
use crate::sys::ioctl::{MappedEntries, SlotCalls, SlotRegion};

/// A memory slot as KVM has it; see [`KvmVm::slots`](crate::KvmVm::slots).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotInfo {
    /// Guest-physical address, in bytes.
    pub guest_phys_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether guests cannot write it.
    pub readonly: bool,
    /// Whether KVM logs writes to it.
    pub logged: bool,
}

/// A slot of the table.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) guest: u64,
    pub(super) size: u64,
    /// Kept alive for KVM, which maps its memory into the guest.
    pub(super) block: Arc<RamBlock>,
    pub(super) offset: u64,
    pub(super) readonly: bool,
    pub(super) logged: bool,
    /// With manual protection, the bits that KVM has reported and that were not cleared in KVM.
    pub(super) uncleared: SlotBitmap,
    /// The block's count of clients switched on (`switch_ons`), from before `uncleared` was merged.
    pub(super) uncleared_since: u64,
}

impl Slot {
    fn set(&self, vm: &impl SlotCalls, size: u64) -> Result<(), KvmError> {
        let log = if self.logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let readonly = if self.readonly { KVM_MEM_READONLY } else { 0 };
        let &Self { id: slot, guest, offset, .. } = self;
        let region = SlotRegion { slot, flags: log | readonly, guest, offset, size };
        log::debug!(
            "slot {slot}: {size:#x} bytes of {} at {guest:#x}, flags {:#x}",
            self.block.id(),
            region.flags
        );
        vm.set_slot(region, &self.block).map_err(|source| KvmError::SetSlot {
            slot,
            guest,
            size,
            block: self.block.id().to_owned(),
            source,
        })
    }

    pub(super) fn create(&self, vm: &impl SlotCalls) -> Result<(), KvmError> {
        self.set(vm, self.size)
    }

    pub(super) fn delete(&self, vm: &impl SlotCalls) -> Result<(), KvmError> {
        self.set(vm, 0)
    }

    /// Switches the log on or off; address and size stay.
    pub(super) fn switch(&mut self, vm: &impl SlotCalls, logged: bool) -> Result<(), KvmError> {
        let before = std::mem::replace(&mut self.logged, logged);
        self.create(vm).inspect_err(|_| self.logged = before)?;
        self.uncleared.discard();
        Ok(())
    }
}

/// The pages of a block that a slot shows.
#[derive(Clone, Debug)]
pub(super) struct SlotPages {
    pub(super) block: Arc<RamBlock>,
    /// The slot's first page in the block.
    pub(super) first: u64,
    pub(super) pages: u64,
}

/// How KVM tracks written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// KVM_GET_DIRTY_LOG clears the bits that it reports.
    Bitmap,
    /// KVM_CLEAR_DIRTY_LOG clears them, `chunk` pages in one call at least.
    ManualProtect { chunk: u64 },
    /// Dirty rings, and perhaps a bitmap of what was written outside of vCPUs.
    Rings { with_bitmap: bool },
}

/// The slots in use, by the first address of their section; of rings whose entries are `E`.
#[derive(Debug)]
pub(crate) struct Slots<E = MappedEntries> {
    pub(super) page: PageSize,
    pub(super) limit: usize,
    /// The largest slot, in bytes.
    pub(super) most: u64,
    pub(super) mode: Mode,
    pub(super) used: BTreeMap<u64, Vec<Slot>>,
    /// By the slot's number.
    pub(super) pages_by_id: Vec<Option<SlotPages>>,
    pub(super) free: BTreeSet<u32>,
    /// One past the highest number ever used.
    pub(super) next_id: u32,
    /// Without manual protection, the last report; kept to reuse its memory.
    pub(super) report: SlotBitmap,
    /// Pages of one block that are to be marked; kept to reuse its memory.
    pub(super) pages: Vec<u64>,
    pub(crate) rings: Rings<E>,
    pub(super) bound: DirtyBound,
    /// Entries were lost, and the log of a slot could not be re-armed, or a ring not be realigned.
    pub(super) needs_recovery: bool,
    pub(crate) stats: DirtyLogStats,
}

impl<E: Entries> Slots<E> {
    /// At most `limit` slots of at most `most` bytes.
    pub(crate) fn new(limit: usize, most: u64, mode: Mode) -> Self {
        Self {
            page: PageSize::host(),
            limit,
            most,
            mode,
            used: BTreeMap::new(),
            pages_by_id: Vec::new(),
            free: BTreeSet::new(),
            next_id: 0,
            report: SlotBitmap::default(),
            pages: Vec::new(),
            rings: Rings::default(),
            bound: DirtyBound::default(),
            needs_recovery: false,
            stats: DirtyLogStats::default(),
        }
    }

    /// Gives slots numbers from `first` on.
    pub(crate) fn first_slot(mut self, first: u32) -> Self {
        self.next_id = first;
        self
    }

    /// Enters a slot that KVM has created.
    pub(super) fn enter(&mut self, at: u64, slot: Slot) {
        let id = slot.id as usize;
        if !self.free.remove(&slot.id) {
            self.next_id = self.next_id.max(slot.id + 1);
        }
        if self.pages_by_id.len() <= id {
            self.pages_by_id.resize(id + 1, None);
        }
        self.pages_by_id[id] = Some(SlotPages {
            block: slot.block.clone(),
            first: self.page.page_of(slot.offset),
            pages: self.page.count(slot.size),
        });
        self.used.entry(at).or_default().push(slot);
    }

    /// Removes the last slot of the section at `at`, which KVM has deleted.
    pub(super) fn forget(&mut self, at: u64) -> Option<Slot> {
        let slots = self.used.get_mut(&at)?;
        let slot = slots.pop();
        if slots.is_empty() {
            self.used.remove(&at);
        }
        let slot = slot?;
        self.pages_by_id[slot.id as usize] = None;
        self.free.insert(slot.id);
        Some(slot)
    }

    /// The block that guests see at an address, the offset in it, and how many bytes the slot has
    /// from there on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn block_at(&self, address: u64) -> Option<(Arc<RamBlock>, u64, u64)> {
        let (_, slots) = self.used.range(..=address).next_back()?;
        let has = |slot: &&Slot| slot.guest <= address && address - slot.guest < slot.size;
        let slot = slots.iter().find(has)?;
        let at = address - slot.guest;
        Some((slot.block.clone(), slot.offset + at, slot.size - at))
    }

    /// The sections that have slots.
    pub(crate) fn sections(&self) -> Vec<u64> {
        self.used.keys().copied().collect()
    }

    /// The slots in the order of their addresses.
    pub(crate) fn list(&self) -> Vec<SlotInfo> {
        let info = |slot: &Slot| SlotInfo {
            guest_phys_addr: slot.guest,
            size: slot.size,
            readonly: slot.readonly,
            logged: slot.logged,
        };
        let mut slots: Vec<_> = self.used.values().flatten().map(info).collect();
        slots.sort_by_key(|slot| slot.guest_phys_addr);
        slots
    }
}
