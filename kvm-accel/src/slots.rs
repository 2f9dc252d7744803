//! KVM's memory slots, kept equal to the RAM of a flat view, and their dirty log.
//!
//! Nothing is lost when slots change. A slot that is logged is harvested before it
//! is deleted, with the vCPUs kept out of the guest from before the harvest until
//! after the deletion, so that no store falls between the two. A log that is
//! switched off is harvested first; what is stored after that has no reader left.
//! KVM_GET_DIRTY_LOG takes the bits of all clients at once, so each harvest is
//! merged for *every* client that is on: whoever asks, nobody's bits are eaten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use memory_region::{Section, ViewChange};
use ram_block::{PageSize, RamBlock};

use crate::error::KvmError;
use crate::ioctl::{SlotCalls, SlotRegion};

/// What the dirty log has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyLogStats {
    /// Calls of KVM_GET_DIRTY_LOG.
    pub syncs: u64,
    /// Pages that they reported.
    pub pages: u64,
    /// Time that they and the merges took.
    pub time: Duration,
}

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
}

impl Slot {
    fn set(&self, vm: &impl SlotCalls, size: u64) -> Result<(), KvmError> {
        let log = if self.logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let readonly = if self.readonly { KVM_MEM_READONLY } else { 0 };
        let Self { id: slot, guest, offset, .. } = *self;
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
}

/// The slot for a section, if it has whole pages that KVM can map.
fn plan(section: &Section, page: PageSize) -> Option<Slot> {
    let block = section.ram()?;
    let mask = u128::from(page.bytes() - 1);
    let start = (u128::from(section.start()) + mask) & !mask;
    let end = (u128::from(section.last()) + 1) & !mask;
    let offset = u128::from(section.offset()) + (start - u128::from(section.start()));
    if start >= end {
        return None; // less than a page: every access exits
    }
    if offset & mask != 0 {
        log::warn!("{section:?} is not page-aligned in its block: every access to it exits");
        return None;
    }
    Some(Slot {
        id: 0,
        guest: u64::try_from(start).ok()?,
        size: u64::try_from(end - start).ok()?,
        block: block.clone(),
        offset: u64::try_from(offset).ok()?,
        readonly: section.readonly(),
        logged: !section.log().is_empty(),
    })
}

/// The slots in use, by the first address of their section.
#[derive(Debug)]
pub(crate) struct Slots {
    page: PageSize,
    limit: usize,
    used: BTreeMap<u64, Slot>,
    free: BTreeSet<u32>,
    /// One past the highest number ever used.
    fresh: u32,
    /// The log as KVM writes it; grows to the largest slot and stays.
    buffer: Vec<u64>,
    pub(crate) stats: DirtyLogStats,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            page: PageSize::host(),
            limit,
            used: BTreeMap::new(),
            free: BTreeSet::new(),
            fresh: 0,
            buffer: Vec::new(),
            stats: DirtyLogStats::default(),
        }
    }

    /// Whether slots come or go, so that guests must stand still: also where they only
    /// come, as a later step may fail and take them back.
    pub(crate) fn needs_exclusion(change: &ViewChange) -> bool {
        change.removed.iter().chain(&change.added).any(|section| section.ram().is_some())
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
            .filter_map(|section| Some((section.start(), plan(section, self.page)?)))
            .collect();
        let needed = self.used.len() - going.len() + coming.len();
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
            if let Some(slot) = self.used.get(&at) {
                slot.delete(vm)?;
            }
            if let Some(slot) = self.used.remove(&at) {
                self.free.insert(slot.id);
                undo.push(Undo::Create(at, slot));
            }
        }
        for (at, mut slot) in coming {
            slot.id = self.free.first().copied().unwrap_or(self.fresh);
            slot.create(vm)?;
            if !self.free.remove(&slot.id) {
                self.fresh += 1;
            }
            self.used.insert(at, slot);
            undo.push(Undo::Delete(at));
        }
        for relogged in &change.relogged {
            let at = relogged.section.start();
            let logged = !relogged.section.log().is_empty();
            if self.used.get(&at).is_some_and(|slot| slot.logged != logged) {
                self.set_logged(vm, at, logged)?;
                undo.push(Undo::Log(at, !logged));
            }
        }
        Ok(())
    }

    fn take_back(&mut self, vm: &impl SlotCalls, step: Undo) -> Result<(), KvmError> {
        match step {
            Undo::Create(at, slot) => {
                slot.create(vm)?;
                self.free.remove(&slot.id);
                self.used.insert(at, slot);
            }
            Undo::Delete(at) => {
                self.harvest(vm, at)?;
                // As long as KVM has the slot, the table keeps its block.
                if let Some(slot) = self.used.get(&at) {
                    slot.delete(vm)?;
                }
                if let Some(slot) = self.used.remove(&at) {
                    self.free.insert(slot.id);
                }
            }
            Undo::Log(at, logged) => {
                self.set_logged(vm, at, logged)?;
                // What was stored while the log was off is known to nobody.
                if let Some(slot) = self.used.get(&at).filter(|_| logged) {
                    slot.block.dirty().mark(slot.offset, slot.size);
                }
            }
        }
        Ok(())
    }

    fn set_logged(&mut self, vm: &impl SlotCalls, at: u64, logged: bool) -> Result<(), KvmError> {
        if !logged {
            self.harvest(vm, at)?;
        }
        if let Some(slot) = self.used.get_mut(&at) {
            let new = Slot { logged, ..slot.clone() };
            new.create(vm)?; // the same place and size: only the flags change
            *slot = new;
        }
        Ok(())
    }

    /// Merges the log of the slot for the section at `at` into its block, for every
    /// client that is on. Without a slot or a log there is nothing to do.
    pub(crate) fn harvest(&mut self, vm: &impl SlotCalls, at: u64) -> Result<u64, KvmError> {
        let Some(slot) = self.used.get(&at).filter(|slot| slot.logged) else { return Ok(0) };
        let begin = Instant::now();
        let pages = self.page.count(slot.size);
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        if self.buffer.len() < words {
            self.buffer.resize(words, 0);
        }
        let bitmap = &mut self.buffer[..words];
        vm.get_dirty_log(slot.id, pages, bitmap).map_err(|source| KvmError::GetDirtyLog {
            slot: slot.id,
            block: slot.block.id().to_owned(),
            source,
        })?;
        let found = slot.block.dirty().merge(self.page.page_of(slot.offset), pages, bitmap)?;
        let time = begin.elapsed();
        self.stats.syncs += 1;
        self.stats.pages += found;
        self.stats.time += time;
        log::trace!(
            "sync of slot {} ({}): {found} of {pages} pages, {time:?}",
            slot.id,
            slot.block.id()
        );
        Ok(found)
    }

    /// The slots in the order of their addresses.
    pub(crate) fn list(&self) -> Vec<SlotInfo> {
        let info = |slot: &Slot| SlotInfo {
            guest: slot.guest,
            size: slot.size,
            readonly: slot.readonly,
            logged: slot.logged,
        };
        self.used.values().map(info).collect()
    }
}

/// A step of a commit, to be taken back in reverse order.
enum Undo {
    Create(u64, Slot),
    Delete(u64),
    Log(u64, bool),
}

#[cfg(test)]
mod tests;
