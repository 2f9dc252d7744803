//! Taking a client's bits: as a snapshot, into a private bitmap, or word by word; and the guard
//! that gives a snapshot's bits back unless they were dealt with.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::bitmap::bits::{BITS, GRANULE};
use crate::bitmap::locked::LockedBitmap;
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
    fn new(
        owner: Arc<DirtyMemory>,
        client: DirtyClient,
        disable_count: u64,
        snapshot: DirtySnapshot,
    ) -> Self {
        Self { owner: Some(owner), client, disable_count, snapshot }
    }

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

impl DirtyMemory {
    /// Takes the bits of exactly `pages` from `client`'s bitmap.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear_into`](Self::snapshot_and_clear_into).
    pub fn snapshot_and_clear(
        self: &Arc<Self>,
        client: DirtyClient,
        pages: Range<u64>,
    ) -> Result<Harvest, DirtyError> {
        self.snapshot_and_clear_into(client, pages, DirtySnapshot::default())
    }

    /// Takes the bits of exactly `pages` from `client`'s bitmap, using the buffer of
    /// an earlier snapshot: allocates only if that is too small.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, [`DirtyError::Claimed`],
    /// and [`DirtyError::ClientOff`], also if the client was switched off meanwhile.
    pub fn snapshot_and_clear_into(
        self: &Arc<Self>,
        client: DirtyClient,
        pages: Range<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, DirtyError> {
        let _unclaimed = self.unclaimed(client)?;
        self.take_snapshot(client, self.disable_count(client), pages, buffer)
    }

    /// The caller has the right to take the client's bits, and made sure of that after it read
    /// `disable_count`, the count of the client's switches off.
    pub(super) fn take_snapshot(
        self: &Arc<Self>,
        client: DirtyClient,
        disable_count: u64,
        pages: Range<u64>,
        mut buffer: DirtySnapshot,
    ) -> Result<Harvest, DirtyError> {
        self.check_on(client, &pages)?;
        buffer.reset(pages.clone());
        self.take_words(client, &pages, |word, bits| buffer.put(word, bits));
        self.check_still_on(client, disable_count, &pages)?;
        Ok(Harvest::new(self.clone(), client, disable_count, buffer))
    }

    /// Whether `client` was on all the time since `disable_count` was read. If not, some of the
    /// bits that were taken from `pages` meanwhile may belong to a new client of the same number:
    /// all of `pages` are marked for it.
    pub(crate) fn check_still_on(
        &self,
        client: DirtyClient,
        disable_count: u64,
        pages: &Range<u64>,
    ) -> Result<(), DirtyError> {
        if self.disable_count(client) == disable_count {
            return Ok(());
        }
        self.mark_range(ClientSet::EMPTY.with(client), pages);
        Err(DirtyError::ClientOff { client, enabled: self.enabled() })
    }

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
        mut each: impl FnMut(&mut LockedBitmap, &Range<u64>),
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

    /// Moves the bits of exactly `pages` from `client`'s bitmap into `into`, a bitmap of
    /// the whole block that its consumer keeps for itself. Returns how many bits of
    /// `into` are new.
    ///
    /// Word n of `into` has the pages from 64 n on, the least significant bit the lowest page. The
    /// bits are the consumer's from then on: nothing gives them back. Costs as much as is dirty,
    /// and allocates nothing.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, [`DirtyError::ShortBitmap`] if
    /// `into` is too short for them, [`DirtyError::ClientOff`] and [`DirtyError::Claimed`].
    pub fn move_into(
        &self,
        client: DirtyClient,
        pages: Range<u64>,
        into: &mut [u64],
    ) -> Result<u64, DirtyError> {
        let _unclaimed = self.unclaimed(client)?;
        self.move_bits(client, self.disable_count(client), pages, into)
    }

    /// The caller has the right to take the client's bits, as for
    /// [`take_snapshot`](Self::take_snapshot).
    pub(super) fn move_bits(
        &self,
        client: DirtyClient,
        disable_count: u64,
        pages: Range<u64>,
        into: &mut [u64],
    ) -> Result<u64, DirtyError> {
        self.check_on(client, &pages)?;
        let needed = pages.end.div_ceil(BITS);
        if (into.len() as u64) < needed {
            return Err(DirtyError::ShortBitmap { words: into.len(), pages: pages.end, needed });
        }
        let mut new = 0;
        self.each_granule(client, &pages, |bulk, granule| {
            new += bulk.move_into(granule, 0, into, |_, _| ());
        });
        self.take_marked(client, &pages, |word, bits| {
            let slot = &mut into[index(word)];
            new += u64::from((bits & !*slot).count_ones());
            *slot |= bits;
        });
        self.check_still_on(client, disable_count, &pages)?;
        Ok(new)
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
