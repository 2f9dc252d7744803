//! One page of a TLB.
//!
//! # When an entry may be used
//!
//! An entry was filled from a view, and is used as long as that shows it. Each access compares the
//! number of the space's current view with the number of the view up to which the TLB has followed
//! ([`Generation`](crate::view::generation::Generation), raised after a view is published). If they
//! differ, the tags of all pages that may have moved are taken away first (`Tlb::follow`). A thread
//! that has reason to know of a commit, because it has made it or was told of it, finds the new
//! number; one that runs beside a commit accesses the old map or the new, as it would by
//! [`AddressSpace::read`](crate::AddressSpace::read).
//!
//! A page without its tag is compared with the current view by its next access, and goes on if the
//! same bytes of the same block are there: a commit costs the pages that it moves.
//!
//! The entry holds its block, so that its memory is valid whatever becomes of the map. Whether a
//! store has to be marked is the page's own affair ([`RamPage`]).

use std::sync::Arc;

use ram_block::RamPage;

use crate::view::section::{Section, SectionTarget};

/// A tag that no access has: accesses have zeros here.
const NO_TAG: u64 = 1 << 3;

/// A page of RAM or ROM, or none.
#[repr(align(64))]
pub(super) struct Entry<const BITS: u32> {
    /// The page's address if it can be loaded from.
    load: u64,
    /// The page's address if it can be stored to.
    store: u64,
    pub(super) page: Option<RamPage<BITS>>,
}

/// What an access compares with the page's address: the page, and the bits by which it is not
/// aligned.
#[inline(always)]
fn tag<const BITS: u32>(address: u64, size: usize) -> u64 {
    address & (u64::MAX << BITS | (size as u64 - 1))
}

impl<const BITS: u32> Entry<BITS> {
    pub(super) fn empty() -> Self {
        Self { load: NO_TAG, store: NO_TAG, page: None }
    }

    /// The page, if an aligned load of `size` bytes at `address` is in it.
    #[inline(always)]
    pub(super) fn for_load(&self, address: u64, size: usize) -> Option<&RamPage<BITS>> {
        if self.load == tag::<BITS>(address, size) { self.page.as_ref() } else { None }
    }

    /// The page, if an aligned store of `size` bytes at `address` is in it.
    #[inline(always)]
    pub(super) fn for_store(&mut self, address: u64, size: usize) -> Option<&mut RamPage<BITS>> {
        if self.store == tag::<BITS>(address, size) { self.page.as_mut() } else { None }
    }

    /// The page's address, if it can be loaded from.
    pub(super) fn address(&self) -> Option<u64> {
        (self.load != NO_TAG).then_some(self.load)
    }

    /// Keeps accesses from using the page until it was compared with the current view.
    pub(super) fn take_tags(&mut self) {
        (self.load, self.store) = (NO_TAG, NO_TAG);
    }

    /// As [`take_tags`](Self::take_tags), if the entry's page, of whose address the bits of `mask`
    /// count, has a byte from `first` to `last`.
    pub(super) fn take_tags_in(&mut self, mask: u64, (first, last): (u64, u64)) {
        let has_any = |tag: u64| {
            let start = tag & mask;
            start <= last && start | !(u64::MAX << BITS) >= first
        };
        if has_any(self.load) || has_any(self.store) {
            self.take_tags();
        }
    }

    /// Keeps loads, and stores, from using the page.
    pub(super) fn withhold(&mut self, (loads, stores): (bool, bool)) {
        if loads {
            self.load = NO_TAG;
        }
        if stores {
            self.store = NO_TAG;
        }
    }

    /// Makes the page of `address` the entry's, if `section`, which has the address, as far as the
    /// bits of `mask` count, in the current view, has all of it in memory. Returns how many stores
    /// were marked of a page that it lets go.
    pub(super) fn fill(&mut self, address: u64, mask: u64, section: &Section) -> u64 {
        let tag = address & u64::MAX << BITS;
        let start = tag & mask;
        let last = start | !(u64::MAX << BITS);
        let (block, writable) = match &section.target {
            SectionTarget::Ram(block) => (block, !section.readonly),
            SectionTarget::RomDevice { block, .. } => (block, false),
            _ => return self.let_go(),
        };
        if start < section.start || section.last.min(mask) < last {
            return self.let_go();
        }
        let offset = section.offset + (start - section.start);
        // The same bytes as before: what is known of their marks still holds.
        let is_same =
            |page: &RamPage<BITS>| Arc::ptr_eq(page.block(), block) && page.offset() == offset;
        let gone = if self.page.as_ref().is_some_and(is_same) { 0 } else { self.let_go() };
        let page = self.page.take().or_else(|| RamPage::new(block, offset).ok());
        let has_page = page.is_some();
        *self = Self {
            load: if has_page { tag } else { NO_TAG },
            store: if has_page && writable { tag } else { NO_TAG },
            page,
        };
        gone
    }

    /// Forgets the page; returns how many of its stores were marked.
    pub(super) fn let_go(&mut self) -> u64 {
        let gone = self.marked_stores();
        *self = Self::empty();
        gone
    }

    pub(super) fn marked_stores(&self) -> u64 {
        self.page.as_ref().map_or(0, RamPage::marked_stores)
    }
}
