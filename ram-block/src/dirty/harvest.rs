//! Taking a client's bits: as a snapshot, into a private bitmap, or word by word; and the guard
//! that gives a snapshot's bits back unless they were dealt with.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::bitmap::bits::{BITS, GRANULE};
use crate::bitmap::page_set::PageSet;
use crate::dirty::claim::DirtyClaim;
use crate::dirty::client::{ClientSet, DirtyClient};
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::snapshot::DirtySnapshot;
use crate::page::index;

/// Dirty pages that were taken from a client's bitmap and are not dealt with yet.
///
/// Holding one proves that the bits are no longer in the bitmap and that no other harvest has them.
/// [`commit`](Harvest::commit) declares the work done (the lines drawn, the pages sent or noted in
/// a private bitmap). Dropped without that, by an early return or a panic, it **gives the bits
/// back**, so that the next harvest finds them again.
#[must_use = "a harvest that is dropped gives its bits back; commit it when its pages are dealt \
    with"]
pub struct Harvest {
    /// Empty once committed.
    owner: Option<Arc<DirtyMemory>>,
    client: DirtyClient,
    /// How often the client had been switched off before: the bits are dropped if it is again.
    disable_count: u64,
    snapshot: DirtySnapshot,
}

impl Harvest {
    /// Declares the pages dealt with; returns the snapshot, whose buffer the next
    /// harvest can reuse.
    pub fn commit(mut self) -> DirtySnapshot {
        self.owner = None;
        std::mem::take(&mut self.snapshot)
    }
}

impl Deref for Harvest {
    type Target = DirtySnapshot;

    fn deref(&self) -> &DirtySnapshot {
        &self.snapshot
    }
}

impl Drop for Harvest {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.restore(self.client, self.disable_count, &self.snapshot);
        }
    }
}

impl fmt::Debug for Harvest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harvest")
            .field("client", &self.client)
            .field("snapshot", &self.snapshot)
            .finish()
    }
}

impl DirtyClaim {
    /// Takes the client's bits of exactly `pages`.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear_into`](Self::snapshot_and_clear_into).
    pub fn snapshot_and_clear(&self, pages: Range<u64>) -> Result<Harvest, DirtyError> {
        self.snapshot_and_clear_into(pages, DirtySnapshot::default())
    }

    /// Takes the client's bits of exactly `pages`, using the buffer of an earlier snapshot:
    /// allocates only if that is too small.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, and [`DirtyError::ClientOff`] if
    /// the claim has [ended](Self::end).
    pub fn snapshot_and_clear_into(
        &self,
        pages: Range<u64>,
        mut buffer: DirtySnapshot,
    ) -> Result<Harvest, DirtyError> {
        self.check(&pages)?;
        buffer.reset(pages.clone());
        self.dirty.take_words(self.client, &pages, |word, bits| buffer.put(word, bits));
        self.check_still_on(&pages)?;
        let Self { dirty, client, disable_count } = self;
        Ok(Harvest {
            owner: Some(dirty.clone()),
            client: *client,
            disable_count: *disable_count,
            snapshot: buffer,
        })
    }

    /// Moves the client's bits of exactly `pages` into `into`, a bitmap of the whole block that its
    /// consumer keeps for itself. Returns how many bits of `into` are new.
    ///
    /// Word n of `into` has the pages from 64 n on, the least significant bit the lowest page. The
    /// bits are the consumer's from then on: nothing gives them back. Costs as much as is dirty,
    /// and allocates nothing.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, [`DirtyError::ShortBitmap`] if
    /// `into` is too short for them, and [`DirtyError::ClientOff`] if the claim has ended.
    pub fn move_into(&self, pages: Range<u64>, into: &mut [u64]) -> Result<u64, DirtyError> {
        self.check(&pages)?;
        let needed = pages.end.div_ceil(BITS);
        if (into.len() as u64) < needed {
            return Err(DirtyError::ShortBitmap { words: into.len(), pages: pages.end, needed });
        }
        let mut new = 0;
        self.dirty.each_granule(self.client, &pages, |bulk, granule| {
            new += bulk.move_into(granule, 0, into, |_, _| ());
        });
        self.dirty.take_marked(self.client, &pages, |word, bits| {
            let slot = &mut into[index(word)];
            new += u64::from((bits & !*slot).count_ones());
            *slot |= bits;
        });
        self.check_still_on(&pages)?;
        Ok(new)
    }

    /// Moves the client's bits of exactly `pages` into a set of the consumer's; returns how many
    /// pages are new there. As [`move_into`](Self::move_into), but costs and takes memory for what
    /// is dirty only, however many pages there are.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, or `into` no room for them, and
    /// [`DirtyError::ClientOff`] if the claim has ended.
    pub fn move_to(&self, pages: Range<u64>, into: &mut PageSet) -> Result<u64, DirtyError> {
        self.check(&pages)?;
        self.dirty.check(&pages, into.room())?;
        let mut new = 0;
        self.dirty.each_granule(self.client, &pages, |bulk, granule| {
            new += bulk.move_to(granule, into);
        });
        let marked = |word, bits| new += into.insert_word(word, bits);
        self.dirty.take_marked(self.client, &pages, marked);
        self.check_still_on(&pages)?;
        Ok(new)
    }

    /// Checks that the claim has not ended and that the block has `pages`.
    pub(super) fn check(&self, pages: &Range<u64>) -> Result<(), DirtyError> {
        let Self { dirty, client, disable_count } = self;
        dirty.check(pages, dirty.pages())?;
        if dirty.disable_count(*client) == *disable_count {
            return Ok(());
        }
        Err(DirtyError::ClientOff { client: *client, enabled: dirty.enabled() })
    }

    /// Checks that the claim did not end while bits of `pages` were taken. If it did, some of them
    /// may belong to the next client of its number: all of `pages` are marked for that one.
    pub(super) fn check_still_on(&self, pages: &Range<u64>) -> Result<(), DirtyError> {
        let still_on = self.check(&(0..0));
        if still_on.is_err() {
            self.dirty.mark_range(ClientSet::EMPTY.with(self.client), pages);
        }
        still_on
    }
}

impl DirtyMemory {
    /// Returns the bits of a harvest to the client they came from, unless it was
    /// switched off since.
    fn restore(&self, client: DirtyClient, disable_count: u64, snapshot: &DirtySnapshot) {
        if self.disable_count(client) == disable_count {
            snapshot.block_words().for_each(|(word, bits)| self.mark_for(client, word, bits));
        }
    }

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
