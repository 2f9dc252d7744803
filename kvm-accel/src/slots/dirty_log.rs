//! Harvesting and clearing the log of slots, in each of the ways in which KVM keeps it.
//!
//! # Manual protection
//!
//! With manual protection KVM_GET_DIRTY_LOG only reads the log, and KVM_CLEAR_DIRTY_LOG says which
//! bits to clear, and which pages to write-protect again. A slot keeps what KVM last reported: its
//! *uncleared* bits. Only those are cleared in KVM, and with that they are dropped here. A client's
//! own bits would not do: with two clients, the first takes a bit, clears it in KVM and reads the
//! page; the guest writes the page again, and KVM sets its bit; the second clears it with the copy
//! that it still has, and the second write is lost. The uncleared bit is gone after the first
//! clear, until a sync has given the second write's bit to every client.
//!
//! For the same reason all uncleared bits are dropped once a client is switched on: it was not
//! given what was reported before. The map that the slots follow, another map that shows the block,
//! or a caller at the block itself may switch one on at any moment. So the block counts them
//! (`DirtyMemory::switch_ons`), and a slot keeps the count from before the merge of its report. A
//! clear reads the count twice. If it differs before the ioctl, the bits stay in KVM. If it differs
//! after the ioctl, the client may have read a page just before a write that found KVM's bit still
//! set and was cleared with it: what was cleared is merged again, for all clients. A code watch has
//! no such count for each page that it comes to watch: it is notified of all that was cleared.
//!
//! # Rings
//!
//! A ring belongs to a vCPU, not to a slot: whichever section is synced, all rings are taken. If
//! entries may be lost, the log of every slot is re-armed (switched off and on) and all its pages
//! are marked, while no vCPU runs guest code.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ram_block::PageSize;

use crate::dirty_ring::ring::Entries;
use crate::dirty_ring::set::RingOfVcpu;
use crate::error::KvmError;
use crate::slots::bitmap::index;
use crate::slots::table::{Mode, Slot, Slots};
use crate::stats::DirtyLogStats;
use crate::sys::ioctl::SlotCalls;

/// With manual protection, the most words that one call clears, of 1 GiB of 4 KiB pages: KVM keeps
/// guests from faulting meanwhile.
const MAX_WORDS: usize = 4096;

impl<E: Entries> Slots<E> {
    /// Merges KVM's log of the slots of the section at `at` into their block, for every client that
    /// is on. Does nothing without a slot or a log.
    pub(crate) fn harvest(&mut self, vm: &impl SlotCalls, at: u64) -> Result<(), KvmError> {
        if let Mode::Rings { with_bitmap } = self.mode {
            self.take_rings(vm)?;
            if !with_bitmap {
                return Ok(());
            }
        }
        for n in 0..self.used.get(&at).map_or(0, Vec::len) {
            self.harvest_slot(vm, at, n)?;
        }
        Ok(())
    }

    /// How many slots the section at `at` has.
    pub(crate) fn slots_of(&self, at: u64) -> usize {
        self.used.get(&at).map_or(0, Vec::len)
    }

    /// Harvests slot `n` of the section at `at`, if it is still there and logged.
    pub(crate) fn harvest_slot(
        &mut self,
        vm: &impl SlotCalls,
        at: u64,
        n: usize,
    ) -> Result<(), KvmError> {
        let manual = matches!(self.mode, Mode::ManualProtect { .. });
        let Self { page, used, report, stats, .. } = self;
        let slot = used.get_mut(&at).and_then(|slots| slots.get_mut(n));
        let Some(slot) = slot.filter(|slot| slot.logged) else { return Ok(()) };
        let pages = page.count(slot.size);
        let Slot { id, block, offset, size, uncleared, uncleared_since, .. } = slot;
        // Before the merge: a client that is switched on later may not be given all of it.
        *uncleared_since = block.dirty().switch_ons();
        // With manual protection KVM reports uncleared pages again, with the new ones: the report
        // replaces the uncleared bits.
        let report = if manual { uncleared } else { report };
        let get = |words: &mut [u64]| stats.gets.count(|| vm.get_dirty_log(*id, pages, words));
        report.fetch(pages, get).map_err(|source| {
            let (slot, block) = (*id, block.id().to_owned());
            KvmError::GetDirtyLog { slot, block, source }
        })?;
        let first = page.page_of(*offset);
        let merge = |(word, words): (u64, &[u64])| {
            let (skipped, bits) = (word * 64, words.len() as u64 * 64);
            block.dirty().merge(first + skipped, bits.min(pages - skipped), words)
        };
        let merged = if report.is_clean() {
            Ok(0) // not worth reading the clock twice
        } else {
            stats.merges.count(|| report.parts().map(merge).sum::<Result<u64, _>>())
        };
        if merged.is_err() {
            // Not given to all clients, and perhaps cleared in KVM: any page may be dirty.
            report.forget();
            block.dirty().mark(*offset, *size);
        }
        let found = merged?;
        stats.pages += found;
        log::trace!("sync of slot {id} ({}): {found} of {pages} pages", block.id());
        Ok(())
    }

    /// Clears in KVM the uncleared bits of the `bytes` of the block that the section at `at` shows,
    /// and those of the rest of their chunks.
    pub(crate) fn clear(
        &mut self,
        vm: &impl SlotCalls,
        at: u64,
        bytes: &Range<u64>,
    ) -> Result<(), KvmError> {
        let Mode::ManualProtect { chunk } = self.mode else { return Ok(()) };
        let Self { page, used, stats, .. } = self;
        let slots = used.get_mut(&at).map_or(&mut [][..], Vec::as_mut_slice);
        let first = slots.partition_point(|slot| slot.offset + slot.size <= bytes.start);
        let spanned = slots[first..].iter_mut().take_while(|slot| slot.offset < bytes.end);
        for slot in spanned.filter(|slot| slot.logged) {
            let start = bytes.start.max(slot.offset) - slot.offset;
            let end = bytes.end.min(slot.offset + slot.size) - slot.offset;
            let last = page.page_of(end - 1);
            let pages = page.page_of(start) / chunk * chunk..(last / chunk + 1) * chunk;
            slot.clear(vm, &pages, chunk, page.count(slot.size), stats)?;
        }
        Ok(())
    }

    /// Takes the entries of all rings and marks their pages; if some may be lost, marks all pages.
    /// Returns how many entries were found. With a bound on what is dirty, keeps guests out
    /// meanwhile.
    pub(crate) fn take_rings(&mut self, vm: &impl SlotCalls) -> Result<usize, KvmError> {
        if !self.bound.is_on() {
            return self.take_and_mark(vm);
        }
        vm.exclude(|| {
            let found = self.take_and_mark(vm);
            self.bound.check(self.rings.taken(), self.rings.capacity());
            found
        })
    }

    fn take_and_mark(&mut self, vm: &impl SlotCalls) -> Result<usize, KvmError> {
        let (mut lost, failed) = match self.rings.take(vm, &mut self.stats) {
            Ok(lost) => (lost, None),
            Err(error) => (true, Some(error)),
        };
        let found = self.rings.found.len();
        lost |= !self.mark_found();
        if lost || self.needs_recovery {
            self.recover(vm)?;
        }
        match failed {
            Some(source) => Err(KvmError::ResetRings { source }),
            None => Ok(found),
        }
    }

    /// What is true while no guest may run, as the dirty bound is reached.
    pub(crate) fn bound_reached(&self) -> &Arc<AtomicBool> {
        self.bound.reached()
    }

    /// Removes the bound on what vCPUs dirty, or sets it anew, from now on.
    pub(crate) fn set_dirty_bound(
        &mut self,
        vm: &impl SlotCalls,
        pages: Option<u64>,
    ) -> Result<(), KvmError> {
        let least = self.rings.capacity();
        if let Some(asked) = pages.filter(|pages| *pages < least) {
            return Err(KvmError::DirtyBound { asked, least });
        }
        vm.exclude(|| {
            self.take_and_mark(vm)?;
            self.bound.set(pages, self.rings.taken());
            Ok(())
        })
    }

    /// Adds the ring of a new vCPU.
    pub(crate) fn add_ring(&mut self, entries: E) -> RingOfVcpu {
        let ring = self.rings.add(entries);
        self.bound.check(self.rings.taken(), self.rings.capacity());
        ring
    }

    /// Handles an exit because `ring` is full. When the guest was entered, the ring's count of
    /// moves was `moves`.
    pub(crate) fn ring_full(
        &mut self,
        vm: &impl SlotCalls,
        ring: &RingOfVcpu,
        moves: u64,
    ) -> Result<(), KvmError> {
        self.stats.ring_full += 1;
        self.take_rings(vm)?;
        if ring.moves() != moves {
            // Emptied by this call, or before by another thread; if it is full again, KVM exits
            // again.
            return Ok(());
        }
        // Full the whole time, but no entry was DIRTY: entries were overwritten.
        if !self.rings.is_displaced(ring.number) {
            self.rings.overrun(ring.number);
            self.recover(vm)?;
        }
        match self.rings.skip_quarter(ring.number, vm, &mut self.stats) {
            Ok(false) => Ok(()),
            Ok(true) => self.recover(vm),
            Err(source) => {
                self.recover(vm)?;
                Err(KvmError::ResetRings { source })
            }
        }
    }

    /// Marks the pages that were found in rings; returns whether KVM has slots for all of them.
    fn mark_found(&mut self) -> bool {
        // A code watch's hook may panic: the entries that are left are lost then, as their pages
        // are protected again. The next take finds that out by this.
        let needed_recovery = std::mem::replace(&mut self.needs_recovery, true);
        let all_known = self.mark_entries();
        self.needs_recovery = needed_recovery;
        all_known
    }

    fn mark_entries(&mut self) -> bool {
        let Self { rings, pages_by_id, pages, stats, .. } = self;
        let found = &mut rings.found;
        found.sort_unstable_by_key(|(slot, _)| *slot);
        let mut all_known = true;
        for entries in found.chunk_by(|a, b| a.0 == b.0) {
            // The upper half is KVM's second address space, where this crate has no slots.
            let shown = pages_by_id.get(entries[0].0 as usize).and_then(Option::as_ref);
            let Some(shown) = shown else {
                all_known = false;
                continue;
            };
            pages.clear();
            let inside = entries.iter().map(|(_, page)| *page).filter(|page| *page < shown.pages);
            pages.extend(inside.map(|page| shown.first + page));
            all_known &= pages.len() == entries.len();
            stats.merges.count(|| shown.block.dirty().mark_pages(pages));
            stats.pages += pages.len() as u64;
        }
        all_known
    }

    /// After a loss of entries: keeps guests out, finds KVM's indices in the rings again, re-arms
    /// the log of every slot, then marks all pages. Stores before that are marked, later ones are
    /// entries. What fails is tried again by the next sync.
    fn recover(&mut self, vm: &impl SlotCalls) -> Result<(), KvmError> {
        self.stats.ring_overruns += 1;
        // A guest can cause any number of losses: one warning is enough.
        let level =
            if self.stats.ring_overruns == 1 { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "KVM lost entries of a dirty ring: all pages count as written");
        self.needs_recovery = true;
        vm.exclude(|| {
            self.bound.stop();
            let realigned = self.rings.realign(vm, &mut self.stats);
            let mut result = Ok(());
            for slot in self.used.values_mut().flatten().filter(|slot| slot.logged) {
                let rearmed = slot.switch(vm, false).and_then(|()| slot.switch(vm, true));
                slot.logged = true;
                slot.block.dirty().mark(slot.offset, slot.size);
                result = result.and(rearmed);
            }
            self.needs_recovery = result.is_err() || !matches!(realigned, Ok(true));
            realigned.map_err(|source| KvmError::ResetRings { source })?;
            result
        })
    }
}

impl Slot {
    /// Clears the uncleared bits of `pages` in KVM (multiples of 64, which may reach past the
    /// slot's `count` pages), as many chunks in a call as are asked for, and KVM is to take.
    fn clear(
        &mut self,
        vm: &impl SlotCalls,
        pages: &Range<u64>,
        chunk: u64,
        count: u64,
        stats: &mut DirtyLogStats,
    ) -> Result<(), KvmError> {
        let words = index(pages.start / 64)..index(pages.end.min(count).div_ceil(64));
        let step = index(chunk / 64);
        let step = (MAX_WORDS / step).max(1) * step;
        let mut from = words.start;
        let dirty = self.block.dirty();
        let page_at_start = PageSize::host().page_of(self.offset);
        // Only the range between the first and the last uncleared bit of each call's chunks.
        while let Some(first) = self.uncleared.first(&(from..words.end)) {
            from = (first / step + 1) * step;
            let range = self.uncleared.up_to_last(first, from.min(words.end));
            if dirty.switch_ons() != self.uncleared_since {
                // A client was switched on, and was not given these bits: they stay in KVM.
                self.uncleared.forget();
                break;
            }
            let (first, bits) = (range.start as u64 * 64, range.len() as u64 * 64);
            let number = bits.min(count - first);
            let bitmap = self.uncleared.words(range.clone());
            let ones = bitmap.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
            let asked = u32::try_from(number).unwrap_or(u32::MAX);
            let cleared = stats.clears.count(|| vm.clear_dirty_log(self.id, first, asked, bitmap));
            // After a failure too: KVM may have cleared some bits, and reports the others again.
            let at = page_at_start + first;
            let reported = match dirty.switch_ons() == self.uncleared_since {
                true => dirty.report_to_code(at, number, bitmap),
                // A client was switched on after the first check: KVM may have cleared a write that
                // this client has to see.
                false => dirty.merge(at, number, bitmap).map(drop),
            };
            self.uncleared.clear(range);
            if reported.is_err() {
                dirty.mark(self.offset, self.size);
            }
            cleared.map_err(|source| {
                let (slot, block) = (self.id, self.block.id().to_owned());
                KvmError::ClearDirtyLog { slot, first, count: number, block, source }
            })?;
            stats.cleared_pages += ones;
        }
        Ok(())
    }
}
