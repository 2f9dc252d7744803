//! The dirty bitmaps of one block, and the fan-out to all of them.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;

use crate::barrier;
use crate::bitmap::{BITS, Bitmap, words_of};
use crate::bulk::{Bulk, Shifted};
use crate::client::{ClientSet, DirtyClient};
use crate::page::{PageSize, index};
use crate::wide::{self, CHUNK};

mod harvest;
#[cfg(test)]
mod tests;

/// A request that a block's bitmaps cannot serve.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DirtyError {
    /// Pages outside the block were named.
    #[error("Pages {start}..{end} were asked for, but the block has {pages}")]
    OutOfRange {
        /// First page asked for.
        start: u64,
        /// One past the last page asked for.
        end: u64,
        /// How many pages the block has.
        pages: u64,
    },
    /// The bitmap to merge is too short for the pages it should describe.
    #[error("A bitmap of {words} words cannot describe {pages} pages, which need {needed}")]
    ShortBitmap {
        /// Words given, of 64 bits.
        words: usize,
        /// Pages to be described.
        pages: u64,
        /// Words needed.
        needed: u64,
    },
    /// The client logs nothing, so there is nothing to harvest.
    #[error("Client {client} is off, only {enabled} log here")]
    ClientOff {
        /// The client asked for.
        client: DirtyClient,
        /// Those that are on.
        enabled: ClientSet,
    },
}

/// The bulk part of each client that is on.
type BulkParts = [Option<Bulk>; DirtyClient::COUNT];

/// Set in `enabled` where writers must fence for themselves; see `barrier`.
const WRITERS_FENCE: u64 = 1 << 63;

/// The dirty bitmaps of one block: one for each [`DirtyClient`] that is on.
///
/// All methods may be called from any thread at any time. A mark that has
/// returned is in the next harvest of every client that was on when the mark
/// began, or in one that was running at the time. Two harvests of one client at the
/// same time share its bits in some way; a client has one harvester as a rule. Page 0
/// is bit 0 of word 0, so blocks never share a word.
///
/// As vm-memory's `Bitmap` it marks whatever is written through a slice that
/// carries it. Pointers escape it: after a write through `get_host_address`,
/// `PtrGuardMut::as_ptr`, `get_atomic_ref` or `aligned_as_mut`, call
/// [`mark`](Self::mark).
pub struct DirtyMemory {
    page_size: PageSize,
    pages: u64,
    /// The mask of clients that are on, and [`WRITERS_FENCE`].
    enabled: AtomicU64,
    /// Held while a client is switched: the bits that switching off drops are not those
    /// of a client that somebody else has switched on again.
    switching: Mutex<()>,
    /// How often each client was switched off.
    epochs: [AtomicU64; DirtyClient::COUNT],
    /// What the synchronizer merged, under this lock; of clients that are on.
    bulk: Mutex<BulkParts>,
    /// What anybody marked. Allocated when a client is first on.
    bitmaps: [OnceLock<Bitmap>; DirtyClient::COUNT],
}

impl DirtyMemory {
    /// Bitmaps for `pages` pages of `page_size`, every client off.
    pub fn new(pages: u64, page_size: PageSize) -> Arc<Self> {
        Self::with_fence(pages, page_size, !barrier::available())
    }

    /// As [`new`](Self::new); with `fence`, each mark passes a fence of its own.
    fn with_fence(pages: u64, page_size: PageSize, fence: bool) -> Arc<Self> {
        let fence = if fence { WRITERS_FENCE } else { 0 };
        Arc::new(Self {
            page_size,
            pages,
            enabled: AtomicU64::new(fence),
            switching: Mutex::new(()),
            epochs: [const { AtomicU64::new(0) }; DirtyClient::COUNT],
            bulk: Mutex::default(),
            bitmaps: [const { OnceLock::new() }; DirtyClient::COUNT],
        })
    }

    /// The grain of the bitmaps.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The clients that are on.
    pub fn enabled(&self) -> ClientSet {
        Self::clients_in(self.enabled.load(Ordering::Acquire))
    }

    fn lock_bulk(&self) -> MutexGuard<'_, BulkParts> {
        // Plain words: whatever panicked, each of them is whole.
        self.bulk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients_in(mask: u64) -> ClientSet {
        ClientSet::from_bits(mask.to_le_bytes()[0])
    }

    /// Switches `client` on: every write from now on marks it.
    ///
    /// What was written before is not in its bitmap, so a client that mirrors
    /// memory begins by taking all of it. A page whose write was under way is
    /// either marked, or has its new contents in memory when this returns: a
    /// client that reads pages afterwards misses neither.
    ///
    /// There is no count: the first switch off is one. Who logs a block through a
    /// memory map leaves its switches to the map.
    ///
    /// Uses the `membarrier` system call. A sandbox that comes to forbid it between the
    /// first block and this call should allow it: writes that were under way in that
    /// very moment are then not covered by the promise above.
    pub fn enable(&self, client: DirtyClient) {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        self.bitmaps[client.index()].get_or_init(|| Bitmap::new(self.pages));
        self.lock_bulk()[client.index()].get_or_insert_with(|| Bulk::new(self.pages));
        self.enabled.fetch_or(1 << client.number(), Ordering::SeqCst);
        if self.enabled.load(Ordering::SeqCst) & WRITERS_FENCE == 0 && !barrier::every_thread() {
            log::warn!(
                "membarrier is refused since the start: each mark of guest memory fences from now on"
            );
            self.enabled.fetch_or(WRITERS_FENCE, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
    }

    /// Switches `client` off and drops its bits. Does nothing if it is off.
    ///
    /// A mark that is under way may still leave a bit behind: when the client is
    /// switched on again, it may find a page dirty that is not.
    pub fn disable(&self, client: DirtyClient) {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.enabled.fetch_and(!(1 << client.number()), Ordering::SeqCst);
        if Self::clients_in(before).contains(client) {
            self.epochs[client.index()].fetch_add(1, Ordering::AcqRel);
            self.lock_bulk()[client.index()] = None;
            if let Some(bitmap) = self.bitmaps[client.index()].get() {
                bitmap.take(&(0..self.pages), |_, _| ());
            }
        }
    }

    /// How often `client` was switched off.
    ///
    /// Between two looks with the same result, no bits of the client were dropped: who
    /// builds on all that was harvested since the first look can tell.
    pub fn epoch(&self, client: DirtyClient) -> u64 {
        self.epochs[client.index()].load(Ordering::Acquire)
    }

    /// The bitmaps to mark, read after the caller's store to the page.
    #[inline]
    fn targets(&self) -> Option<impl Iterator<Item = &Bitmap>> {
        // Without a fence of its own this load may pass the caller's store to the
        // page in the processor; `enable` makes that harmless, or sets WRITERS_FENCE.
        // The compiler must not move the store behind the load: nobody could mend that.
        compiler_fence(Ordering::SeqCst);
        let mut mask = self.enabled.load(Ordering::Acquire);
        if mask == 0 {
            return None;
        }
        if mask & WRITERS_FENCE != 0 {
            fence(Ordering::SeqCst);
            mask = self.enabled.load(Ordering::Acquire);
        }
        Some(Self::clients_in(mask).iter().filter_map(|client| self.bitmaps[client.index()].get()))
    }

    /// Marks the pages that `len` bytes from byte `offset` touch, for every client
    /// that is on. The part that lies outside the block is ignored.
    ///
    /// Call it after the write. Costs a load and a branch when no client is on.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        if let Some(targets) = self.targets() {
            let touched = self.page_size.touched(offset, len);
            let pages = touched.start..touched.end.min(self.pages);
            if !pages.is_empty() {
                targets.for_each(|bitmap| bitmap.mark_range(&pages));
            }
        }
    }

    /// Marks the pages of these numbers for every client that is on: what a dirty ring
    /// yields. Returns how many the block has; the others are ignored.
    pub fn mark_pages(&self, pages: &[u64]) -> u64 {
        let inside = |page: &&u64| **page < self.pages;
        if let Some(targets) = self.targets() {
            for bitmap in targets {
                for page in pages.iter().filter(inside) {
                    bitmap.mark_word(page / BITS, 1 << (page % BITS));
                }
            }
        }
        pages.iter().filter(inside).count() as u64
    }

    /// Merges a bitmap of `count` pages, bit 0 of which is page `first`, into every
    /// client that is on. Returns how many pages it names.
    ///
    /// The form is that of KVM's dirty log: little-endian bit order in 64-bit
    /// words. Bits from `count` on are ignored. `first` need not be a multiple of
    /// 64. Costs one pass over the words, and no atomic operation; other merges and
    /// harvests of this block wait for a granule of 262,144 pages at most.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, and
    /// [`DirtyError::ShortBitmap`] if `words` does not hold `count` bits; nothing
    /// is marked then.
    pub fn merge(&self, first: u64, count: u64, words: &[u64]) -> Result<u64, DirtyError> {
        self.check(&(first..first.saturating_add(count)))?;
        let needed = count.div_ceil(BITS);
        if (words.len() as u64) < needed {
            return Err(DirtyError::ShortBitmap { words: words.len(), pages: count, needed });
        }
        let source = Shifted { words, first, count };
        Ok(self.merge_chunks(&source))
    }

    /// Merges granule by granule, so that the lock is held for a short time.
    fn merge_chunks(&self, source: &Shifted<'_>) -> u64 {
        let mut buffer = [0; CHUNK];
        let mut set = 0;
        let chunks = words_of(&source.destination());
        let mut next = chunks.start;
        while next < chunks.end {
            let end = ((next / BITS + 1) * BITS).min(chunks.end);
            let mut bulk = self.lock_bulk();
            for chunk in next..end {
                let words = source.chunk(chunk, &mut buffer);
                if words.iter().fold(0, |all, word| all | word) == 0 {
                    continue;
                }
                let (nonzero, ones) = wide::scan(words);
                set += ones;
                for bulk in bulk.iter_mut().flatten() {
                    bulk.merge_chunk(index(chunk), words, nonzero);
                }
            }
            next = end;
        }
        set
    }

    /// Whether `client` is on and the block has `pages`.
    pub(crate) fn check_on(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
    ) -> Result<(), DirtyError> {
        self.check(pages)?;
        let enabled = self.enabled();
        if enabled.contains(client) {
            Ok(())
        } else {
            Err(DirtyError::ClientOff { client, enabled })
        }
    }

    fn check(&self, pages: &Range<u64>) -> Result<(), DirtyError> {
        if pages.start > pages.end || pages.end > self.pages {
            return Err(DirtyError::OutOfRange {
                start: pages.start,
                end: pages.end,
                pages: self.pages,
            });
        }
        Ok(())
    }

    /// Whether `page` is dirty for `client`; false if the client is off or the block
    /// has no such page.
    pub fn is_dirty(&self, client: DirtyClient, page: u64) -> bool {
        let marked = || {
            let marked =
                self.bitmaps[client.index()].get().is_some_and(|bitmap| bitmap.contains(page));
            marked
                || self.lock_bulk()[client.index()].as_ref().is_some_and(|bulk| bulk.contains(page))
        };
        page < self.pages && self.enabled().contains(client) && marked()
    }
}

impl fmt::Debug for DirtyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyMemory")
            .field("page_size", &self.page_size.bytes())
            .field("pages", &self.pages)
            .field("enabled", &self.enabled())
            .finish()
    }
}
