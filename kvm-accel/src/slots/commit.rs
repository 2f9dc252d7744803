//! KVM's memory slots, kept equal to the RAM of a flat view.
//!
//! Nothing is lost when slots change. A slot that is logged is harvested before it is deleted, with
//! the vCPUs kept out of the guest from before the harvest until after the deletion, so that no
//! store falls between the two. A log that is switched off is harvested first; no client needs what
//! is stored after that. KVM_GET_DIRTY_LOG clears its bits for all clients at once, so each harvest
//! is merged for *every* client that is on, whichever of them asked for it.

use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;
use memory_region::{Section, ViewChange};
use ram_block::PageSize;

use crate::dirty_ring::ring::Entries;
use crate::error::KvmError;
use crate::slots::bitmap::{SlotBitmap, index};
use crate::slots::table::{Slot, Slots};
use crate::sys::ioctl::SlotCalls;

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
        // A guest can cause this again and again, by moving a BAR: one warning is enough.
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
            uncleared: SlotBitmap::default(),
            uncleared_since: 0,
        })
    };
    (first..end).step_by(index(most)).filter_map(slot).collect()
}

/// Whether KVM's log has a bit for each page of the blocks that come.
fn check_page_sizes(change: &ViewChange, host: PageSize) -> Result<(), KvmError> {
    let blocks = change.added.iter().filter_map(Section::ram);
    match blocks.map(|block| (block, block.page_size())).find(|(_, page)| *page != host) {
        Some((block, page)) => Err(KvmError::PageSize {
            block: block.id().to_owned(),
            found: page.bytes(),
            host: host.bytes(),
        }),
        None => Ok(()),
    }
}

impl<E: Entries> Slots<E> {
    /// Applies `change`, or leaves the slots as they were.
    pub(crate) fn commit(
        &mut self,
        vm: &impl SlotCalls,
        change: &ViewChange,
    ) -> Result<(), KvmError> {
        check_page_sizes(change, self.page)?;
        let removed: Vec<u64> = change
            .removed
            .iter()
            .map(Section::start)
            .filter(|at| self.used.contains_key(at))
            .collect();
        let added: Vec<(u64, Slot)> = change
            .added
            .iter()
            .flat_map(|section| {
                let slots = plan(section, self.page, self.most);
                slots.into_iter().map(|slot| (section.start(), slot))
            })
            .collect();
        let deleted: usize = removed.iter().map(|at| self.used[at].len()).sum();
        let used: usize = self.used.values().map(Vec::len).sum();
        let needed = used - deleted + added.len();
        if needed > self.limit {
            return Err(KvmError::SlotLimit { needed, limit: self.limit });
        }

        let mut undo = Vec::new();
        let result = self.apply(vm, &removed, added, change, &mut undo);
        if result.is_err() {
            for step in undo.into_iter().rev() {
                if let Err(error) = self.undo(vm, step) {
                    log::error!("A slot cannot be restored: {error}");
                }
            }
        }
        result
    }

    fn apply(
        &mut self,
        vm: &impl SlotCalls,
        removed: &[u64],
        added: Vec<(u64, Slot)>,
        change: &ViewChange,
        undo: &mut Vec<Undo>,
    ) -> Result<(), KvmError> {
        for &at in removed {
            self.harvest(vm, at)?;
            while let Some(slot) = self.used.get(&at).and_then(|slots| slots.last()) {
                slot.delete(vm)?;
                undo.extend(self.forget(at).map(|slot| Undo::Create(at, slot)));
            }
        }
        for (at, mut slot) in added {
            slot.id = self.free.first().copied().unwrap_or(self.next_id);
            slot.create(vm)?;
            self.enter(at, slot);
            undo.push(Undo::Delete(at));
        }
        for log_change in &change.log_changed {
            let at = log_change.section.start();
            // A client that is switched on now was not given the uncleared bits.
            for slot in self.used.get_mut(&at).into_iter().flatten() {
                slot.uncleared.forget();
            }
            let logged = !log_change.section.log().is_empty();
            if self.used.get(&at).is_some_and(|slots| slots.iter().any(|s| s.logged != logged)) {
                undo.push(Undo::Log(at, !logged));
                self.set_logged(vm, at, logged)?;
            }
        }
        Ok(())
    }

    fn undo(&mut self, vm: &impl SlotCalls, step: Undo) -> Result<(), KvmError> {
        match step {
            Undo::Create(at, mut slot) => {
                slot.create(vm)?;
                slot.uncleared.forget();
                self.enter(at, slot);
            }
            Undo::Delete(at) => {
                if let Err(error) = self.harvest(vm, at) {
                    // Deleted all the same, or the former slots could not be restored.
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
                // Stores while the log was off are in no log.
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
}

/// Whether slots are deleted or created, so that guests must be kept out: also if some are only
/// created, as a later step may fail and delete them again.
pub(crate) fn needs_exclusion(change: &ViewChange) -> bool {
    change.removed.iter().chain(&change.added).any(|section| section.ram().is_some())
}

/// A step of a commit, to be undone in reverse order.
enum Undo {
    Create(u64, Slot),
    Delete(u64),
    Log(u64, bool),
}
