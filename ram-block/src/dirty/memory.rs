//! The dirty bitmaps of one block; a mark sets the bits of all clients that are on.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bitmap::shifted::Shifted;
use crate::dirty::client::{Claims, ClientSet, DirtyClient};
use crate::dirty::client_sets::ClientSets;
use crate::dirty::error::DirtyError;
use crate::dirty::marks::{Marks, NEVER};
use crate::dirty::watched::Watched;
use crate::page::PageSize;
use crate::sys::membarrier;

/// Set in `enabled` where writers must fence for themselves; see `membarrier`.
pub(super) const WRITERS_FENCE: u64 = 1 << 63;

/// The dirty bitmaps of one block: one for each [`DirtyClient`] that is on.
///
/// All methods may be called from any thread at any time. A mark that has returned is in the next
/// harvest of every client that was on when the mark began, or in one that was running at the time.
/// A client is on as long as its log is [claimed](Self::claim), and only the claim harvests it.
/// Page 0 is bit 0 of word 0, so blocks never share a word.
///
/// As vm-memory's `Bitmap` it marks whatever is written through a slice that carries it. Writes
/// through raw pointers are not marked: after a write through `get_host_address`,
/// `PtrGuardMut::as_ptr`, `get_atomic_ref` or `aligned_as_mut`, call [`mark`](Self::mark).
pub struct DirtyMemory {
    page_size: PageSize,
    /// How many pages there are now.
    pub(super) pages: AtomicU64,
    /// How many there can be: what the bitmaps have room for.
    pub(super) room: u64,
    /// The mask of clients that are on, and [`WRITERS_FENCE`]. The code client is in it
    /// while a page is watched.
    pub(super) enabled: AtomicU64,
    /// Who claimed each client's log. Held while a client is switched on or off, so that a switch
    /// off never drops the bits of a client that another thread has switched on again.
    claims: Mutex<Claims>,
    /// For each client, held while its bits are taken or given back, and while it is switched off:
    /// a harvest takes the bits of its own claim only. After the lock of the claims, before that of
    /// the sets.
    harvests: [Mutex<()>; DirtyClient::COUNT],
    /// How often each client was switched off; changes under its harvest lock.
    pub(super) disable_counts: [AtomicU64; DirtyClient::COUNT],
    /// How often any client was switched on.
    pub(super) switch_ons: AtomicU64,
    /// How often the length was changed.
    pub(super) resizes: AtomicU64,
    /// What marks have set and no harvest has distributed yet, for all clients that are on. Without
    /// memory while none is.
    pub(super) marks: Marks,
    /// The dirty pages of each client that is on, but for those that are marked.
    pub(super) sets: ClientSets,
    /// The code client's pages.
    code: Watched,
}

impl DirtyMemory {
    /// Bitmaps for `pages` pages of `page_size`, every client off.
    pub fn new(pages: u64, page_size: PageSize) -> Arc<Self> {
        Self::with_room(pages, pages, page_size)
    }

    /// As [`new`](Self::new), with room for `room` pages.
    pub(crate) fn with_room(pages: u64, room: u64, page_size: PageSize) -> Arc<Self> {
        Self::with_fence(pages, room, page_size, !membarrier::available())
    }

    /// As [`with_room`](Self::with_room); with `fence`, each mark passes a fence of its
    /// own.
    pub(super) fn with_fence(pages: u64, room: u64, page_size: PageSize, fence: bool) -> Arc<Self> {
        let fence = if fence { WRITERS_FENCE } else { 0 };
        Arc::new(Self {
            page_size,
            pages: AtomicU64::new(pages),
            room,
            enabled: AtomicU64::new(fence),
            claims: Mutex::default(),
            harvests: [const { Mutex::new(()) }; DirtyClient::COUNT],
            disable_counts: [const { AtomicU64::new(0) }; DirtyClient::COUNT],
            switch_ons: AtomicU64::new(0),
            resizes: AtomicU64::new(0),
            marks: Marks::default(),
            sets: ClientSets::default(),
            code: Watched::default(),
        })
    }

    /// The grain of the bitmaps.
    #[inline]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages there are.
    #[inline]
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Acquire)
    }

    /// The clients that are on. The code client is never among them.
    pub fn enabled(&self) -> ClientSet {
        Self::clients_in(self.enabled.load(Ordering::Acquire)).without(DirtyClient::CODE)
    }

    /// How many pages there can be.
    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    /// The mask of clients that are on, for a code watch.
    pub(crate) fn switches(&self) -> &AtomicU64 {
        &self.enabled
    }

    /// The code client's pages, for a code watch.
    pub(crate) fn code(&self) -> &Watched {
        &self.code
    }

    pub(super) fn lock_claims(&self) -> MutexGuard<'_, Claims> {
        // Nothing that can panic runs between two writes.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_harvest(&self, client: DirtyClient) -> MutexGuard<'_, ()> {
        self.harvests[client.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The harvest lock of a client, unless it was switched off since `disable_count` was read.
    pub(super) fn lock_harvest_of(
        &self,
        client: DirtyClient,
        disable_count: u64,
    ) -> Option<MutexGuard<'_, ()>> {
        let harvesting = self.lock_harvest(client);
        (self.disable_count(client) == disable_count).then_some(harvesting)
    }

    pub(super) fn clients_in(mask: u64) -> ClientSet {
        ClientSet::from_bits(mask.to_le_bytes()[0])
    }

    /// The clients for which a write is to be marked; read after the caller's store to the page.
    #[inline]
    pub(super) fn interested(&self) -> ClientSet {
        // Without a fence of its own this load may pass the caller's store to the page in the CPU;
        // `switch_on` makes that harmless, or sets WRITERS_FENCE. The compiler must not move the
        // store behind the load: nothing could repair that.
        compiler_fence(Ordering::SeqCst);
        let mut mask = self.enabled.load(Ordering::Acquire);
        if mask & WRITERS_FENCE != 0 {
            fence(Ordering::SeqCst);
            mask = self.enabled.load(Ordering::Acquire);
        }
        Self::clients_in(mask)
    }

    /// Marks the pages that `len` bytes from byte `offset` span, for every client that is on. The
    /// part that lies outside the block is ignored.
    ///
    /// Call it after the write. Costs a load and a branch when no client is on, and some loads
    /// more, however many clients are on, for a page that is marked already.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let clients = self.interested();
        if !clients.is_empty() {
            self.mark_for(clients, offset, len);
        }
    }

    /// Apart, so that a write while no client is on is compiled into the caller.
    #[inline(never)]
    fn mark_for(&self, clients: ClientSet, offset: u64, len: u64) {
        let page = self.page_size.page_of(offset);
        let last = self.page_size.page_of(offset.wrapping_add(len.wrapping_sub(1)));
        // What the stores of a processor and most of those of a device are.
        if page != last || !self.is_settled(clients, page) {
            self.mark_bytes(clients, offset, len);
        }
    }

    /// Whether there is nothing to do for a mark of `page`.
    #[inline]
    fn is_settled(&self, clients: ClientSet, page: u64) -> bool {
        let is_watched = || {
            clients.contains(DirtyClient::CODE) && (page >= self.room || self.code.contains(page))
        };
        let is_marked = || self.marks.is_settled(page);
        (clients.without(DirtyClient::CODE).is_empty() || is_marked()) && !is_watched()
    }

    #[inline(never)]
    fn mark_bytes(&self, clients: ClientSet, offset: u64, len: u64) {
        let touched = self.page_size.pages_spanned(offset, len);
        self.mark_range(clients, &(touched.start..touched.end.min(self.room)));
    }

    /// Where a write is marked for `clients`, if one of them takes marks.
    #[inline]
    fn marks_for(&self, clients: ClientSet) -> Option<&Marks> {
        (!clients.without(DirtyClient::CODE).is_empty()).then_some(&self.marks)
    }

    /// The number as long as which a store to a page that was [settled](Self::settle) needs no
    /// mark; to be read after the store.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.marks.sequence()
    }

    /// Makes every store that follows be marked anew.
    pub(crate) fn unsettle(&self) {
        self.marks.unsettle();
    }

    /// As [`mark`](Self::mark); returns the [`sequence`](Self::sequence) as long as which stores to
    /// the page of `offset` need no mark. A number that the sequence never has says that all do:
    /// where writers fence for themselves, and while the page is watched.
    pub(crate) fn settle(&self, offset: u64, len: u64) -> u64 {
        let sequence = self.marks.settle(|| self.mark(offset, len));
        let mask = self.enabled.load(Ordering::Acquire);
        let page = self.page_size.page_of(offset);
        let is_watched = Self::clients_in(mask).contains(DirtyClient::CODE)
            && (page >= self.room || self.code.contains(page));
        if mask & WRITERS_FENCE != 0 || is_watched { NEVER } else { sequence }
    }

    /// As [`mark`](Self::mark), of `bytes`, for all but a code watch.
    pub(crate) fn mark_but_code(&self, bytes: &Range<u64>) {
        let touched = self.page_size.pages_spanned(bytes.start, bytes.end - bytes.start);
        let touched = touched.start..touched.end.min(self.room);
        self.mark_range(self.interested().without(DirtyClient::CODE), &touched);
    }

    /// As [`mark`](Self::mark), of `bytes`, for a code watch alone.
    pub(crate) fn mark_code(&self, bytes: &Range<u64>) {
        if self.interested().contains(DirtyClient::CODE) {
            let touched = self.page_size.pages_spanned(bytes.start, bytes.end - bytes.start);
            self.code_written(&(touched.start..touched.end.min(self.room)));
        }
    }

    /// Called after a write to `pages`.
    #[inline]
    pub(super) fn code_written(&self, pages: &Range<u64>) {
        self.code.written(&self.enabled, pages);
    }

    /// As [`code_written`](Self::code_written), for the pages of a bitmap.
    pub(super) fn code_written_words(&self, source: &Shifted<'_>) {
        self.code.written_words(&self.enabled, source);
    }

    pub(super) fn mark_range(&self, clients: ClientSet, pages: &Range<u64>) {
        if pages.is_empty() {
            return;
        }
        if let Some(marks) = self.marks_for(clients) {
            if pages.end - pages.start == 1 {
                marks.mark(pages.start);
            } else {
                marks.mark_range(pages);
            }
        }
        // Last, so that a hook that panics does not keep the clients from being marked.
        if clients.contains(DirtyClient::CODE) {
            self.code_written(pages);
        }
    }

    /// Marks the pages of these numbers for every client that is on: the entries of a dirty ring,
    /// for example. Returns how many of them the block has; the others are ignored.
    pub fn mark_pages(&self, pages: &[u64]) -> u64 {
        let inside = |page: &&u64| **page < self.room;
        let clients = self.interested();
        if let Some(marks) = self.marks_for(clients) {
            let new = pages.iter().filter(inside).filter(|page| !marks.is_settled(**page));
            new.for_each(|page| marks.mark(*page));
        }
        if clients.contains(DirtyClient::CODE) {
            pages.iter().filter(inside).for_each(|page| self.code_written(&(*page..page + 1)));
        }
        let there = self.pages();
        pages.iter().filter(|page| **page < there).count() as u64
    }

    /// How often `client` was switched off.
    pub(crate) fn disable_count(&self, client: DirtyClient) -> u64 {
        self.disable_counts[client.index()].load(Ordering::Acquire)
    }

    /// Checks that `pages` are among the first `count`.
    pub(crate) fn check(&self, pages: &Range<u64>, count: u64) -> Result<(), DirtyError> {
        let Range { start, end } = *pages;
        if start > end || end > count {
            return Err(DirtyError::OutOfRange { start, end, pages: count });
        }
        Ok(())
    }

    /// Divides all writes of this process in two: a write is in memory when this returns, or its
    /// mark sees what this thread did before.
    pub(crate) fn fence_writers(&self) {
        if self.enabled.load(Ordering::SeqCst) & WRITERS_FENCE == 0 && !membarrier::every_thread() {
            log::warn!(
                "membarrier is refused, which was allowed at first: each mark of guest memory \
                    fences from now on"
            );
            self.enabled.fetch_or(WRITERS_FENCE, Ordering::SeqCst);
            self.marks.unsettle();
        }
        fence(Ordering::SeqCst);
    }

    /// Whether `page` is dirty for `client`; false if the client is off or the block
    /// has no such page. For the code client a page is dirty unless it is watched.
    pub fn is_dirty(&self, client: DirtyClient, page: u64) -> bool {
        if client == DirtyClient::CODE {
            return self.code.exists() && page < self.pages() && !self.code.contains(page);
        }
        let is_marked = || self.marks.contains(page);
        // In this order: what was distributed in between is in the set.
        page < self.pages()
            && self.enabled().contains(client)
            && (is_marked() || self.sets.contains(client, page))
    }
}

impl fmt::Debug for DirtyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyMemory")
            .field("page_size", &self.page_size.bytes())
            .field("pages", &self.pages())
            .field("enabled", &self.enabled())
            .finish()
    }
}
