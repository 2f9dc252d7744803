//! KVM's memory slots, kept equal to the RAM of a flat view, and their dirty log.
//!
//! Nothing is lost when slots change. A slot that is logged is harvested before it
//! is deleted, with the vCPUs kept out of the guest from before the harvest until
//! after the deletion, so that no store falls between the two. A log that is
//! switched off is harvested first; what is stored after that has no reader left.
//! KVM_GET_DIRTY_LOG takes the bits of all clients at once, so each harvest is
//! merged for *every* client that is on: whoever asks, nobody's bits are eaten.
//!
//! # Manual protection
//!
//! KVM_GET_DIRTY_LOG only looks then, and KVM_CLEAR_DIRTY_LOG says which bits to clear, and
//! which pages to watch again. A slot keeps what it last got: its *held* bits. Only those are
//! cleared, and they are held no longer then. A client's own bits would not do: with two
//! clients, the first takes a bit, clears it in KVM and reads the page; the guest writes the
//! page again, and KVM sets its bit; the second clears it with the copy that it still has,
//! and the second write is lost. The held bit is gone after the first clear, until a look has
//! given the second write's bit to every client.
//!
//! For the same reason nothing is held any more once a client is switched on: it was not given
//! what was reported before. The map that the slots follow, another map that shows the block, or
//! a caller at the block itself may switch one on at any moment. So the block counts them
//! (`DirtyMemory::switch_ons`), and a slot keeps the count from before the merge of its report.
//! A clear looks at the count twice. If it differs before the ioctl, the bits stay in KVM. If
//! it differs after the ioctl, the client may have read a page just before a write that found
//! KVM's bit still set and was cleared with it: what was cleared is merged again, for all
//! clients. A code watch has no such count for each page that it comes to watch: it is told of
//! all that was cleared.
//!
//! # Rings
//!
//! A ring is of a vCPU, not of a slot: whatever is asked for, all rings are taken. Where
//! entries may be lost, every logged slot is watched anew and all its pages are marked, while
//! no vCPU runs guest code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use log::Level;
use memory_region::{Section, ViewChange};
use ram_block::{PageSize, RamBlock};

use crate::error::KvmError;
use crate::ioctl::{MappedEntries, SlotCalls, SlotRegion};
use crate::ring::Entries;
use crate::rings::Rings;
use crate::stats::DirtyLogStats;
use report::Report;

mod dirty_log;
mod removal;
mod report;

/// A memory slot as KVM has it; see [`KvmVm::slots`](crate::KvmVm::slots).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Guest-physical address, in bytes.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether guests cannot write it.
    pub readonly: bool,
    /// Whether KVM logs writes to it.
    pub logged: bool,
}

/// A slot of the table.
#[derive(Clone, Debug)]
struct Slot {
    id: u32,
    guest: u64,
    size: u64,
    /// Kept alive for KVM, which has its address.
    block: Arc<RamBlock>,
    offset: u64,
    readonly: bool,
    logged: bool,
    /// With manual protection, the bits that KVM has reported and not cleared.
    held: Report,
    /// The block's count of clients switched on, from before `held` was merged.
    held_since: u64,
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

    fn create(&self, vm: &impl SlotCalls) -> Result<(), KvmError> {
        self.set(vm, self.size)
    }

    fn delete(&self, vm: &impl SlotCalls) -> Result<(), KvmError> {
        self.set(vm, 0)
    }

    /// Switches the log: the same place and size, only the flags change.
    fn switch(&mut self, vm: &impl SlotCalls, logged: bool) -> Result<(), KvmError> {
        let before = std::mem::replace(&mut self.logged, logged);
        self.create(vm).inspect_err(|_| self.logged = before)?;
        self.held.discard();
        Ok(())
    }
}

/// The slots for a section, of at most `most` bytes each; none if it has no whole pages that
/// KVM can map.
fn plan(section: &Section, page: PageSize, most: u64) -> Vec<Slot> {
    let Some(block) = section.ram() else { return Vec::new() };
    let mask = u128::from(page.bytes() - 1);
    let first = (u128::from(section.start()) + mask) & !mask;
    let end = (u128::from(section.last()) + 1) & !mask;
    let skipped = first - u128::from(section.start());
    if first >= end {
        return Vec::new(); // less than a page: every access exits
    }
    if (u128::from(section.offset()) + skipped) & mask != 0 {
        // A guest can move what it has there again and again: one warning is enough.
        static WARNED: AtomicBool = AtomicBool::new(false);
        let level = if WARNED.swap(true, Ordering::Relaxed) { Level::Debug } else { Level::Warn };
        log::log!(level, "{section:?} is not page-aligned in its block: every access to it exits");
        return Vec::new();
    }
    let slot = |guest: u128| {
        Some(Slot {
            id: 0,
            guest: u64::try_from(guest).ok()?,
            size: u64::try_from((end - guest).min(u128::from(most))).ok()?,
            block: block.clone(),
            offset: section.offset() + u64::try_from(guest - u128::from(section.start())).ok()?,
            readonly: section.readonly(),
            logged: !section.log().is_empty(),
            held: Report::default(),
            held_since: 0,
        })
    };
    let step = usize::try_from(most).unwrap_or(usize::MAX);
    (first..end).step_by(step).filter_map(slot).collect()
}

/// What a number of KVM stands for: a part of a block.
#[derive(Clone, Debug)]
struct Place {
    block: Arc<RamBlock>,
    /// The slot's first page in the block.
    first: u64,
    pages: u64,
}

/// How KVM tracks written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A report clears.
    Bitmap,
    /// A report does not clear; so many pages are cleared at once.
    ManualProtect { chunk: u64 },
    /// Entries of rings, and perhaps a bitmap of what was written outside of vCPUs.
    Rings { with_bitmap: bool },
}

/// The slots in use, by the first address of their section; of rings whose entries are `E`.
#[derive(Debug)]
pub(crate) struct Slots<E = MappedEntries> {
    page: PageSize,
    limit: usize,
    /// The largest slot, in bytes.
    most: u64,
    mode: Mode,
    used: BTreeMap<u64, Vec<Slot>>,
    /// By the slot's number.
    places: Vec<Option<Place>>,
    free: BTreeSet<u32>,
    /// One past the highest number ever used.
    fresh: u32,
    /// Without manual protection, the last report; grows to the largest slot and stays.
    report: Report,
    /// Pages of one block, to be marked; kept.
    pages: Vec<u64>,
    pub(crate) rings: Rings<E>,
    /// Entries were lost, and not every slot could be watched anew, or not every ring be
    /// realigned.
    unwatched: bool,
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
            places: Vec::new(),
            free: BTreeSet::new(),
            fresh: 0,
            report: Report::default(),
            pages: Vec::new(),
            rings: Rings::default(),
            unwatched: false,
            stats: DirtyLogStats::default(),
        }
    }

    /// Follows `change`, or leaves the slots as they were.
    pub(crate) fn commit(
        &mut self,
        vm: &impl SlotCalls,
        change: &ViewChange,
    ) -> Result<(), KvmError> {
        let going: Vec<u64> = change
            .removed
            .iter()
            .map(Section::start)
            .filter(|at| self.used.contains_key(at))
            .collect();
        let coming: Vec<(u64, Slot)> = change
            .added
            .iter()
            .flat_map(|section| {
                let slots = plan(section, self.page, self.most);
                slots.into_iter().map(|slot| (section.start(), slot))
            })
            .collect();
        let leaving: usize = going.iter().map(|at| self.used[at].len()).sum();
        let used: usize = self.used.values().map(Vec::len).sum();
        let needed = used - leaving + coming.len();
        if needed > self.limit {
            return Err(KvmError::SlotLimit { needed, limit: self.limit });
        }

        let mut undo = Vec::new();
        let result = self.apply(vm, &going, coming, change, &mut undo);
        if result.is_err() {
            for step in undo.into_iter().rev() {
                if let Err(error) = self.take_back(vm, step) {
                    log::error!("A slot cannot be restored: {error}");
                }
            }
        }
        result
    }

    fn apply(
        &mut self,
        vm: &impl SlotCalls,
        going: &[u64],
        coming: Vec<(u64, Slot)>,
        change: &ViewChange,
        undo: &mut Vec<Undo>,
    ) -> Result<(), KvmError> {
        for &at in going {
            self.harvest(vm, at)?;
            while let Some(slot) = self.used.get(&at).and_then(|slots| slots.last()) {
                slot.delete(vm)?;
                undo.extend(self.forget(at).map(|slot| Undo::Create(at, slot)));
            }
        }
        for (at, mut slot) in coming {
            slot.id = self.free.first().copied().unwrap_or(self.fresh);
            slot.create(vm)?;
            self.enter(at, slot);
            undo.push(Undo::Delete(at));
        }
        for relogged in &change.relogged {
            let at = relogged.section.start();
            // What is held was not given to a client that comes now.
            for slot in self.used.get_mut(&at).into_iter().flatten() {
                slot.held.forget();
            }
            let logged = !relogged.section.log().is_empty();
            if self.used.get(&at).is_some_and(|slots| slots.iter().any(|s| s.logged != logged)) {
                undo.push(Undo::Log(at, !logged));
                self.set_logged(vm, at, logged)?;
            }
        }
        Ok(())
    }

    /// Notes a slot that KVM has now.
    fn enter(&mut self, at: u64, slot: Slot) {
        let id = slot.id as usize;
        if !self.free.remove(&slot.id) {
            self.fresh = self.fresh.max(slot.id + 1);
        }
        if self.places.len() <= id {
            self.places.resize(id + 1, None);
        }
        self.places[id] = Some(Place {
            block: slot.block.clone(),
            first: self.page.page_of(slot.offset),
            pages: self.page.count(slot.size),
        });
        self.used.entry(at).or_default().push(slot);
    }

    /// Forgets the last slot of the section at `at`, which KVM has no more.
    fn forget(&mut self, at: u64) -> Option<Slot> {
        let slots = self.used.get_mut(&at)?;
        let slot = slots.pop();
        if slots.is_empty() {
            self.used.remove(&at);
        }
        let slot = slot?;
        self.places[slot.id as usize] = None;
        self.free.insert(slot.id);
        Some(slot)
    }

    fn take_back(&mut self, vm: &impl SlotCalls, step: Undo) -> Result<(), KvmError> {
        match step {
            Undo::Create(at, mut slot) => {
                slot.create(vm)?;
                slot.held.forget();
                self.enter(at, slot);
            }
            Undo::Delete(at) => {
                if let Err(error) = self.harvest(vm, at) {
                    // It goes all the same, or the former ones cannot come back.
                    log::error!("{error}: all of the slot counts as written");
                    for slot in self.used.get(&at).into_iter().flatten() {
                        slot.block.dirty().mark(slot.offset, slot.size);
                    }
                }
                // As long as KVM has the slot, the table keeps its block.
                if let Some(slot) = self.used.get(&at).and_then(|slots| slots.last()) {
                    slot.delete(vm)?;
                }
                self.forget(at);
            }
            Undo::Log(at, logged) => {
                let switched = self.set_logged(vm, at, logged);
                // What was stored while the log was off is known to nobody.
                for slot in self.used.get(&at).into_iter().flatten().filter(|_| logged) {
                    slot.block.dirty().mark(slot.offset, slot.size);
                }
                switched?;
            }
        }
        Ok(())
    }

    fn set_logged(&mut self, vm: &impl SlotCalls, at: u64, logged: bool) -> Result<(), KvmError> {
        if !logged {
            self.harvest(vm, at)?;
        }
        for slot in self.used.get_mut(&at).into_iter().flatten() {
            if slot.logged != logged {
                slot.switch(vm, logged)?;
            }
        }
        Ok(())
    }

    /// The sections that have slots.
    pub(crate) fn sections(&self) -> Vec<u64> {
        self.used.keys().copied().collect()
    }

    /// The slots in the order of their addresses.
    pub(crate) fn list(&self) -> Vec<SlotInfo> {
        let info = |slot: &Slot| SlotInfo {
            guest: slot.guest,
            size: slot.size,
            readonly: slot.readonly,
            logged: slot.logged,
        };
        let mut slots: Vec<_> = self.used.values().flatten().map(info).collect();
        slots.sort_by_key(|slot| slot.guest);
        slots
    }
}

/// Whether slots come or go, so that guests must stand still: also where they only
/// come, as a later step may fail and take them back.
pub(crate) fn needs_exclusion(change: &ViewChange) -> bool {
    change.removed.iter().chain(&change.added).any(|section| section.ram().is_some())
}

/// A step of a commit, to be taken back in reverse order.
enum Undo {
    Create(u64, Slot),
    Delete(u64),
    Log(u64, bool),
}

#[cfg(test)]
mod tests;
