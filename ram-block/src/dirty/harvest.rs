//! Taking a client's bits: as a snapshot, into a private bitmap, or word by word; and the guard
//! that gives a snapshot's bits back unless they were dealt with.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::bitmap::bits::BITS;
use crate::bitmap::page_set::PageSet;
use crate::dirty::claim::DirtyClaim;
use crate::dirty::client::DirtyClient;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::snapshot::DirtySnapshot;

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
            if let Some(_harvesting) = owner.lock_harvest_of(self.client, self.disable_count) {
                owner.sets.insert_words(self.client, self.snapshot.block_words());
            }
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
        let harvesting = self.lock_harvest(&pages)?;
        buffer.reset(pages.clone());
        self.dirty.take_granules(self.client, &pages, |set, granule| {
            set.take(granule, |word, bits| buffer.put(word, bits));
        });
        drop(harvesting);
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
        let _harvesting = self.lock_harvest(&pages)?;
        let needed = pages.end.div_ceil(BITS);
        if (into.len() as u64) < needed {
            return Err(DirtyError::ShortBitmap { words: into.len(), pages: pages.end, needed });
        }
        let mut new = 0;
        self.dirty.take_granules(self.client, &pages, |set, granule| {
            new += set.move_into(granule, 0, into, |_, _| ());
        });
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
        let _harvesting = self.lock_harvest(&pages)?;
        self.dirty.check(&pages, into.room())?;
        let mut new = 0;
        self.dirty.take_granules(self.client, &pages, |set, granule| {
            new += set.move_to(granule, into);
        });
        Ok(new)
    }
}
