//! A fake KVM: slots, their logs in each of the ways, and rings that may be overrun.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use ram_block::{PageSize, RamBlock};

use crate::dirty_ring::fake_ring::FakeRing;
use crate::slots::table::Mode;
use crate::sys::dirty_gfn::Entry;
use crate::sys::ioctl::{SlotCalls, SlotRegion};

/// A slot of the fake KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PaperSlot {
    /// Guest address, size, offset and flags.
    pub(super) region: (u64, u64, u64, u32),
    pub(super) host: usize,
    dirty: BTreeSet<u64>,
    /// With rings, pages that are not write-protected: a store to them is not logged.
    open: BTreeSet<u64>,
}

/// A KVM that keeps its slots, and fails a call on request.
#[derive(Debug)]
pub(super) struct Paper {
    mode: Mode,
    pub(super) slots: RefCell<BTreeMap<u32, PaperSlot>>,
    pub(super) rings: RefCell<Vec<FakeRing>>,
    pub(super) calls_to_failure: Cell<Option<u32>>,
    /// How many resets are refused from now on.
    pub(super) refused_resets: Cell<u32>,
    /// A signal ends the next reset after so many entries, of which the last few are freed
    /// and not write-protected.
    pub(super) signal_after: Cell<Option<u64>>,
}

/// Entries that a reset frees before it write-protects their pages.
const BATCH: usize = 3;
/// Entries of a ring, and those that KVM keeps free.
const RING: (usize, u32) = (64, 16);

impl Paper {
    pub(super) fn new(mode: Mode, vcpus: usize) -> Self {
        let rings = match mode {
            Mode::Rings { .. } => vcpus,
            _ => 0,
        };
        Self {
            mode,
            slots: RefCell::default(),
            rings: RefCell::new((0..rings).map(|_| FakeRing::new(RING.0, RING.1)).collect()),
            calls_to_failure: Cell::new(None),
            refused_resets: Cell::new(0),
            signal_after: Cell::new(None),
        }
    }

    /// The rings as they are mapped.
    pub(super) fn mapped(&self) -> Vec<Arc<[Entry]>> {
        self.rings.borrow().iter().map(FakeRing::entries).collect()
    }

    /// Whether a vCPU stops, as its ring is full.
    pub(super) fn is_full(&self, vcpu: usize) -> bool {
        self.rings.borrow().get(vcpu).is_some_and(FakeRing::is_full)
    }

    fn is_manual(&self) -> bool {
        matches!(self.mode, Mode::ManualProtect { .. })
    }

    fn may_fail(&self) -> io::Result<()> {
        match self.calls_to_failure.get() {
            Some(0) => {
                self.calls_to_failure.set(None);
                Err(io::ErrorKind::OutOfMemory.into())
            }
            left => {
                self.calls_to_failure.set(left.map(|calls| calls - 1));
                Ok(())
            }
        }
    }

    /// vCPU `vcpu` stores to a page, or a device if that is none: where the page is, if a
    /// slot has it.
    pub(super) fn store(&self, address: u64, vcpu: Option<usize>) -> Option<(usize, u64)> {
        let page = PageSize::host().bytes();
        let mut slots = self.slots.borrow_mut();
        let (id, slot) = slots.iter_mut().find(|(_, slot)| {
            let (guest, size, ..) = slot.region;
            (guest..guest + size).contains(&address)
        })?;
        let (guest, _, offset, flags) = slot.region;
        if flags & KVM_MEM_READONLY != 0 {
            return None;
        }
        let number = (address - guest) / page;
        if flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
            match (self.mode, vcpu) {
                (Mode::Rings { .. }, Some(vcpu)) => {
                    if slot.open.insert(number) {
                        self.rings.borrow_mut()[vcpu].push(*id, number);
                    }
                }
                (Mode::Rings { with_bitmap: false }, None) => return None,
                _ => {
                    slot.dirty.insert(number);
                }
            }
        }
        Some((slot.host, (offset + address - guest) / page))
    }
}

impl SlotCalls for Paper {
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
        self.may_fail()?;
        bitmap.fill(0);
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(&slot).expect("the log of a slot that is not there");
        for page in &slot.dirty {
            assert!(*page < pages);
            bitmap[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
        }
        if !self.is_manual() {
            slot.dirty.clear();
        }
        Ok(())
    }

    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(&slot).expect("the log of a slot that is not there");
        let (pages, count) = (slot.region.1 / PageSize::host().bytes(), u64::from(count));
        assert!(self.is_manual() && first % 64 == 0 && first + count <= pages);
        assert!(count % 64 == 0 || first + count == pages, "{count} of {pages} from {first}");
        let is_named = |page: u64| {
            let n = usize::try_from((page - first) / 64).unwrap();
            bitmap[n] >> ((page - first) % 64) & 1 != 0
        };
        let range = first..first + count;
        slot.dirty.retain(|page| !range.contains(page) || !is_named(*page));
        self.may_fail()
    }

    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        work() // nothing is stored meanwhile
    }

    fn reset_rings(&self) -> io::Result<u64> {
        self.may_fail()?;
        if let Some(left) = self.refused_resets.get().checked_sub(1) {
            self.refused_resets.set(left);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let signal = self.signal_after.take();
        let mut most = signal.unwrap_or(u64::MAX);
        let mut slots = self.slots.borrow_mut();
        let mut count = 0;
        for ring in self.rings.borrow_mut().iter_mut() {
            let freed = ring.reset(most);
            most -= freed.len() as u64;
            count += freed.len() as u64;
            // A signal after all are freed could not be detected: so signals are blocked.
            let ended = signal.is_some() && most == 0 && ring.is_flagged();
            let protected = freed.len().saturating_sub(if ended { BATCH } else { 0 });
            for (slot, page) in &freed[..protected] {
                slots.get_mut(slot).into_iter().for_each(|slot| {
                    slot.open.remove(page);
                });
            }
            if ended {
                break;
            }
        }
        Ok(count)
    }

    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()> {
        self.may_fail()?;
        let SlotRegion { slot, flags, guest, offset, size } = region;
        let mut slots = self.slots.borrow_mut();
        if size == 0 {
            slots.remove(&slot).expect("a slot that is not there is deleted");
            return Ok(());
        }
        let new = PaperSlot {
            region: (guest, size, offset, flags),
            host: block.host_address() as usize,
            dirty: BTreeSet::new(),
            open: BTreeSet::new(),
        };
        let others = slots.iter().filter(|(id, _)| **id != slot);
        for (_, other) in others {
            let (start, len, ..) = other.region;
            assert!(guest + size <= start || start + len <= guest, "slots overlap");
        }
        let mut open = BTreeSet::new();
        let dirty = match slots.get(&slot) {
            Some(old) => {
                let starts = flags & !old.region.3 & KVM_MEM_LOG_DIRTY_PAGES != 0;
                let same = |slot: &PaperSlot| {
                    (slot.region.0, slot.region.1, slot.region.2, slot.region.3 & KVM_MEM_READONLY)
                };
                assert_eq!(same(old), same(&new), "only flags may change");
                if flags & old.region.3 & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    open = old.open.clone();
                }
                if starts && self.is_manual() {
                    (0..size / PageSize::host().bytes()).collect()
                } else if flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    old.dirty.clone()
                } else {
                    BTreeSet::new()
                }
            }
            None if self.is_manual() && flags & KVM_MEM_LOG_DIRTY_PAGES != 0 => {
                (0..size / PageSize::host().bytes()).collect()
            }
            None => BTreeSet::new(),
        };
        slots.insert(slot, PaperSlot { dirty, open, ..new });
        Ok(())
    }
}
