//! Taking a client's bits word by word, from both parts of its bitmap.

use std::ops::Range;

use crate::bitmap::bits::GRANULE;
use crate::bitmap::page_set::PageSet;
use crate::dirty::client::DirtyClient;
use crate::dirty::memory::DirtyMemory;

impl DirtyMemory {
    /// Takes the bits of `pages` from both parts, the locked and the atomic one; a word may be
    /// passed to `sink` twice, with different bits.
    pub(crate) fn take_words(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
        mut sink: impl FnMut(u64, u64),
    ) {
        self.each_granule(client, pages, |bulk, granule| bulk.take(granule, &mut sink));
        self.take_marked(client, pages, sink);
    }

    /// The first granule of `pages` that may have a dirty page of `client`, cut to
    /// `pages`.
    pub(crate) fn dirty_granule(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
    ) -> Option<Range<u64>> {
        let bulk =
            self.lock_bulk()[client.index()].as_ref().and_then(|bulk| bulk.dirty_granule(pages));
        // The other part need not be searched past what this one has.
        let before = pages.start..bulk.as_ref().map_or(pages.end, |granule| granule.start);
        let marked =
            self.bitmaps[client.index()].get().and_then(|bitmap| bitmap.dirty_granule(&before));
        let first = marked.into_iter().chain(bulk).map(|granule| granule.start).min()?;
        Some(first..((first / GRANULE + 1) * GRANULE).min(pages.end))
    }

    /// Calls `each` for every granule of `pages` that the synchronizer may have marked
    /// for `client`, with the lock held for one granule at a time.
    pub(crate) fn each_granule(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
        mut each: impl FnMut(&mut PageSet, &Range<u64>),
    ) {
        let mut rest = pages.clone();
        loop {
            let mut bulk = self.lock_bulk();
            let Some(bulk) = &mut bulk[client.index()] else { break };
            let Some(granule) = bulk.dirty_granule(&rest) else { break };
            each(bulk, &granule);
            rest.start = granule.end;
        }
    }

    /// Takes the bits that marks have set: those of the atomic part.
    pub(crate) fn take_marked(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
        sink: impl FnMut(u64, u64),
    ) {
        if let Some(bitmap) = self.bitmaps[client.index()].get() {
            bitmap.take(pages, sink);
        }
    }
}
