//! A block's memory as it was at a checkpoint.

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
    parts: Vec<Option<Box<[Content; PART]>>>,
}

impl Image {
    /// All zeros.
    pub(super) fn new(
        block: Arc<RamBlock>,
        client: DirtyClient,
        store: usize,
        dirty: PageSet,
    ) -> Self {
        // Of all pages that it can have: a resize may come at any time, and is found out later.
        let room = block.max_len() / block.page_size().bytes();
        let parts = usize::try_from(room).unwrap_or(usize::MAX).div_ceil(PART);
        let epoch = block.dirty().epoch(client);
        Self { block, epoch, store, dirty, dirty_pages: 0, parts: vec![None; parts] }
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
    pub(super) fn take_words(&mut self, words: &mut Vec<(u64, u64)>) {
        words.clear();
        words.extend(self.dirty.drain_words());
        self.dirty_pages = 0;
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

    /// Sets the content of a page that the block has room for; returns the former one.
    pub(super) fn set(&mut self, page: u64, content: Content) -> Content {
        let (part, at) = Self::place(page);
        let part = self.parts[part].get_or_insert_with(|| Box::new([Content::ZERO; PART]));
        std::mem::replace(&mut part[at], content)
    }
}
