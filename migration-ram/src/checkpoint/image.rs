//! A block's memory as it was at a checkpoint.

use std::collections::TryReserveError;
use std::sync::Arc;

use memory_region::{GlobalLogClaim, MapError};
use ram_block::{DirtyClient, PageSet, RamBlock, runs};

use crate::checkpoint::store::Content;

/// Pages of a part of the table.
const PART: usize = 512;

/// The content of each page of a block. Costs what differs from zero.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) block: Arc<RamBlock>,
    /// How often the block's log was interrupted or its length changed, when this was made.
    epoch: u64,
    /// The store of pages of this size.
    pub(super) store: usize,
    /// Pages that were taken from the log, and are still to be dealt with.
    dirty: PageSet,
    /// How many there are.
    dirty_pages: u64,
    /// Of [`PART`] pages each.
    parts: Vec<Option<Box<[Content]>>>,
}

impl Image {
    /// All zeros.
    ///
    /// # Errors
    ///
    /// If there is no memory for the table.
    pub(super) fn new(
        block: Arc<RamBlock>,
        client: DirtyClient,
        store: usize,
        dirty: PageSet,
    ) -> Result<Self, TryReserveError> {
        // Of all pages that it can have: a resize may come at any time, and is found out later.
        let room = block.max_len() / block.page_size().bytes();
        let count = usize::try_from(room).unwrap_or(usize::MAX).div_ceil(PART);
        let mut parts = Vec::new();
        parts.try_reserve_exact(count)?;
        parts.resize(count, None);
        let epoch = block.dirty().epoch(client);
        Ok(Self { block, epoch, store, dirty, dirty_pages: 0, parts })
    }

    /// Whether the log has been whole, and the block's length the same, since this was made.
    pub(super) fn is_whole(&self, client: DirtyClient) -> bool {
        self.block.dirty().epoch(client) == self.epoch
    }

    pub(super) fn dirty_pages(&self) -> u64 {
        self.dirty_pages
    }

    /// Takes what is dirty from the log.
    pub(super) fn take_dirty(&mut self, log: &mut GlobalLogClaim) -> Result<(), MapError> {
        self.dirty_pages += log.move_to(&self.block, &mut self.dirty)?;
        Ok(())
    }

    /// Makes `dirty`, of `pages` pages, the pages that are dirty.
    pub(super) fn replace_dirty(&mut self, dirty: PageSet, pages: u64) {
        (self.dirty, self.dirty_pages) = (dirty, pages);
    }

    /// Makes a page dirty.
    pub(super) fn insert(&mut self, page: u64) {
        self.dirty_pages += u64::from(!self.dirty.contains(page));
        self.dirty.insert(page..page + 1);
    }

    /// Moves the words of the dirty pages to `words`.
    ///
    /// # Errors
    ///
    /// If there is no memory for them: all pages are dirty still.
    pub(super) fn take_words(
        &mut self,
        words: &mut Vec<(u64, u64)>,
    ) -> Result<(), TryReserveError> {
        words.clear();
        let most = self.dirty_pages.min(self.block.pages().div_ceil(64));
        words.try_reserve(usize::try_from(most).unwrap_or(usize::MAX))?;
        words.extend(self.dirty.drain_words());
        self.dirty_pages = 0;
        Ok(())
    }

    /// Makes the pages of these words dirty.
    pub(super) fn insert_words(&mut self, words: &[(u64, u64)]) {
        for page in runs(words.iter().copied()).flatten() {
            self.insert(page);
        }
    }

    fn place(page: u64) -> (usize, usize) {
        let page = usize::try_from(page).unwrap_or(usize::MAX);
        (page / PART, page % PART)
    }

    /// The content of a page that the block has room for.
    pub(super) fn get(&self, page: u64) -> Content {
        let (part, at) = Self::place(page);
        self.parts[part].as_ref().map_or(Content::ZERO, |part| part[at])
    }

    /// Makes room for the content of a page that the block has room for.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub(super) fn reserve(&mut self, page: u64) -> Result<(), TryReserveError> {
        let (part, _) = Self::place(page);
        if self.parts[part].is_none() {
            let mut contents = Vec::new();
            contents.try_reserve_exact(PART)?;
            contents.resize(PART, Content::ZERO);
            self.parts[part] = Some(contents.into());
        }
        Ok(())
    }

    /// Sets the content of a page for which there is [room](Self::reserve); returns the former one.
    pub(super) fn set(&mut self, page: u64, content: Content) -> Content {
        let (part, at) = Self::place(page);
        let former = self.parts[part].as_mut().map(|part| &mut part[at]);
        debug_assert!(former.is_some(), "nobody has made room for page {page}");
        former.map_or(Content::ZERO, |former| std::mem::replace(former, content))
    }
}
