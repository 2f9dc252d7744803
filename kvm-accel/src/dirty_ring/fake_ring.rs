//! A model of KVM's side of a ring, for tests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sys::dirty_gfn::{DIRTY, Entry, RESET};

/// What KVM does to a ring, its overruns included.
#[derive(Debug)]
pub(crate) struct FakeRing {
    entries: Arc<[Entry]>,
    /// Entries that KVM keeps free.
    reserved: u32,
    dirty: u32,
    reset: u32,
}

impl FakeRing {
    pub(crate) fn new(size: usize, reserved: u32) -> Self {
        let entries = (0..size).map(|_| Entry::default()).collect();
        Self { entries, reserved, dirty: 0, reset: 0 }
    }

    /// The entries as they are mapped.
    pub(crate) fn entries(&self) -> Arc<[Entry]> {
        self.entries.clone()
    }

    fn size(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap()
    }

    fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize % self.entries.len()]
    }

    fn used(&self) -> u32 {
        self.dirty.wrapping_sub(self.reset)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.size() - self.reserved
    }

    /// Pushes a page, over whatever the entry holds.
    pub(crate) fn push(&mut self, slot: u32, page: u64) {
        let entry = self.entry(self.dirty);
        entry.slot.store(slot, Ordering::Relaxed);
        entry.page.store(page, Ordering::Relaxed);
        entry.flags.store(DIRTY, Ordering::Release);
        self.dirty = self.dirty.wrapping_add(1);
    }

    /// Goes round once, with entries that were all overwritten again: what an overrun may leave.
    pub(crate) fn go_round(&mut self) {
        self.dirty = self.dirty.wrapping_add(self.size());
    }

    /// Whether the entry at the reset index is flagged RESET: what KVM reads first.
    pub(crate) fn is_flagged(&self) -> bool {
        self.entry(self.reset).flags.load(Ordering::Acquire) & RESET != 0
    }

    /// The slot and page of the entry at the reset index, which KVM reads after its flag: perhaps
    /// of an entry that was pushed over it in between.
    pub(crate) fn content(&self) -> (u32, u64) {
        let entry = self.entry(self.reset);
        (entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed))
    }

    /// Frees the entry at the reset index, whatever was pushed over it since KVM read it.
    pub(crate) fn free(&mut self) {
        self.entry(self.reset).flags.store(0, Ordering::Release);
        self.reset = self.reset.wrapping_add(1);
    }

    /// KVM_RESET_DIRTY_RINGS, of `most` entries: the (slot, page) of those that were freed.
    pub(crate) fn reset(&mut self, most: u64) -> Vec<(u32, u64)> {
        let mut freed = Vec::new();
        while (freed.len() as u64) < most && self.is_flagged() {
            freed.push(self.content());
            self.free();
        }
        freed
    }
}
