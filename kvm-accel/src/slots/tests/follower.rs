//! Slots that follow a map.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use memory_region::{ListenerError, MemoryListener, Section, ViewChange};
use ram_block::PageSize;

use super::fake_kvm::Paper;
use crate::slots::table::Slots;
use crate::sys::dirty_gfn::Entry;
use crate::sys::ioctl::SlotCalls;

/// Which bits a client's clear uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The slot's uncleared bits.
    Held,
    /// The client's own bits, however old: this loses pages. Kept to show that the
    /// tests detect it.
    Own,
    /// The slot's uncleared bits, even if a client was switched on since they were reported.
    /// Kept to show that the tests detect it.
    Deaf,
}

/// The slots as a listener of a map, on a fake KVM or on a real one.
pub(super) struct Follower<K = Paper> {
    pub(super) kvm: Mutex<K>,
    pub(super) slots: Mutex<PaperSlots>,
    pub(super) policy: Policy,
}

pub(super) type PaperSlots = Slots<Arc<[Entry]>>;

impl<K: SlotCalls + Send> MemoryListener for Follower<K> {
    fn name(&self) -> &str {
        "paper"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        Ok(self.slots.lock().unwrap().commit(&*self.kvm.lock().unwrap(), change)?)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.slots.lock().unwrap().harvest(&*self.kvm.lock().unwrap(), section.start())?;
        Ok(())
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let kvm = self.kvm.lock().unwrap();
        let mut slots = self.slots.lock().unwrap();
        match self.policy {
            Policy::Held => Ok(slots.clear(&*kvm, section.start(), &bytes)?),
            Policy::Deaf => {
                for slot in slots.used.values_mut().flatten() {
                    slot.uncleared_since = slot.block.dirty().switch_ons();
                }
                Ok(slots.clear(&*kvm, section.start(), &bytes)?)
            }
            Policy::Own => Ok(clear_own(&*kvm, &slots, section.start(), &bytes)?),
        }
    }
}

/// Clears all pages of `bytes`, as the bits of the client that has just taken them say.
fn clear_own(
    kvm: &impl SlotCalls,
    slots: &PaperSlots,
    at: u64,
    bytes: &Range<u64>,
) -> io::Result<()> {
    let page = PageSize::host();
    for slot in slots.used.get(&at).into_iter().flatten().filter(|slot| slot.logged) {
        let end = slot.offset + slot.size;
        let part = bytes.start.clamp(slot.offset, end)..bytes.end.clamp(slot.offset, end);
        if part.is_empty() {
            continue;
        }
        let own = page.pages_spanned(part.start - slot.offset, part.end - part.start);
        let first = own.start / 64 * 64;
        let last = own.end.next_multiple_of(64).min(page.count(slot.size));
        let mut words = vec![0u64; usize::try_from((last - first).div_ceil(64)).unwrap()];
        for page in own {
            words[usize::try_from((page - first) / 64).unwrap()] |= 1 << (page % 64);
        }
        kvm.clear_dirty_log(slot.id, first, u32::try_from(last - first).unwrap(), &words)?;
    }
    Ok(())
}

impl Follower {
    /// The table and KVM say the same.
    pub(super) fn check(&self) {
        let slots = self.slots.lock().unwrap();
        // The log of a slot that could not be re-armed is on here, and may be off in KVM.
        let flags = if slots.needs_recovery { !KVM_MEM_LOG_DIRTY_PAGES } else { !0 };
        let table: BTreeMap<u32, _> = slots
            .used
            .values()
            .flatten()
            .map(|slot| {
                let log = if slot.logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
                let readonly = if slot.readonly { KVM_MEM_READONLY } else { 0 };
                let region = (slot.guest, slot.size, slot.offset, (log | readonly) & flags);
                (slot.id, (region, slot.block.host_address() as usize))
            })
            .collect();
        let paper = self.kvm.lock().unwrap();
        let paper: BTreeMap<u32, _> = paper
            .slots
            .borrow()
            .iter()
            .map(|(id, slot)| {
                let (guest, size, offset, found) = slot.region;
                (*id, ((guest, size, offset, found & flags), slot.host))
            })
            .collect();
        assert_eq!(table, paper);
        assert!(table.len() <= slots.limit);
        assert!(slots.free.iter().all(|id| !table.contains_key(id) && *id < slots.next_id));
        assert_eq!(table.len() + slots.free.len(), usize::try_from(slots.next_id).unwrap());
    }
}
