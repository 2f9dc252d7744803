//! One page of a TLB.
//!
//! # When an entry may be used
//!
//! An entry was filled from a view, and is used as long as the space has that view: each access
//! compares the space's generation, which a commit raises after it has published the view
//! (`AddressSpace::publish`). A thread that has reason to know of a commit, because it has made it
//! or was told of it, finds the new number; one that runs beside a commit accesses the old map or
//! the new, as it would by [`AddressSpace::read`](crate::AddressSpace::read). An entry of an older
//! view is compared with the current one by its next access, and goes on if the same bytes of the
//! same block are there: a commit costs the pages that it moves.
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
    /// The generation of the space that has the page there.
    generation: u64,
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
        Self { load: NO_TAG, store: NO_TAG, generation: 0, page: None }
    }

    /// The page, if an aligned load of `size` bytes at `address` is in it.
    #[inline(always)]
    pub(super) fn for_load(
        &self,
        address: u64,
        size: usize,
        generation: u64,
    ) -> Option<&RamPage<BITS>> {
        let hit = self.load == tag::<BITS>(address, size) && self.generation == generation;
        if hit { self.page.as_ref() } else { None }
    }

    /// The page, if an aligned store of `size` bytes at `address` is in it.
    #[inline(always)]
    pub(super) fn for_store(
        &mut self,
        address: u64,
        size: usize,
        generation: u64,
    ) -> Option<&mut RamPage<BITS>> {
        let hit = self.store == tag::<BITS>(address, size) && self.generation == generation;
        if hit { self.page.as_mut() } else { None }
    }

    /// Makes the page of `address` the entry's, if `section`, which has the address in the view of
    /// `generation`, has all of it in memory.
    pub(super) fn fill(&mut self, address: u64, section: &Section, generation: u64) {
        let start = address & u64::MAX << BITS;
        let last = start | !(u64::MAX << BITS);
        let is_inside = section.start <= start && last <= section.last;
        let (block, writable) = match &section.target {
            SectionTarget::Ram(block) => (block, !section.readonly),
            SectionTarget::RomDevice { block, .. } => (block, false),
            SectionTarget::Mmio(_) | SectionTarget::Iommu(_) | SectionTarget::Reserved => {
                *self = Self::empty();
                return;
            }
        };
        let offset = section.offset.wrapping_add(start.wrapping_sub(section.start));
        // The same bytes as before: what is known of their marks still holds.
        let is_same =
            |page: &RamPage<BITS>| Arc::ptr_eq(page.block(), block) && page.offset() == offset;
        let kept = self.page.take().filter(is_same);
        let page = kept.or_else(|| RamPage::new(block, offset).ok()).filter(|_| is_inside);
        let has_page = page.is_some();
        *self = Self {
            load: if has_page { start } else { NO_TAG },
            store: if has_page && writable { start } else { NO_TAG },
            generation,
            page,
        };
    }
}
