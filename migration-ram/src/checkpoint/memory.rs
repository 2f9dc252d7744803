//! All RAM as it was at the current checkpoint, and what was written since.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use hashbrown::HashMap;
use memory_region::{GlobalLogClaim, MapError, MemoryMap};
use ram_block::{PageSet, RamBlock, runs};

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::image::Image;
use crate::checkpoint::stats::ResetStats;
use crate::checkpoint::store::PageStore;
use crate::checkpoint::tree::{Change, Removed};
use crate::host::Instant;

/// The memory of the current checkpoint, with the log of what was written since.
///
/// What was taken from the log stays in the images' sets of dirty pages until it was put back, or
/// is in a checkpoint: an error leaves it there.
pub(super) struct KeptMemory {
    map: Arc<MemoryMap>,
    log: GlobalLogClaim,
    /// One for each block, once there is a checkpoint.
    images: Vec<Image>,
    /// One for each size of page.
    stores: Vec<PageStore>,
    /// The most bytes that the stores may take.
    pub(super) limit: u64,
    /// Bytes of the pages of all steps between checkpoints.
    step_bytes: u64,
    /// Words of pages that are put back: kept, so that a reset allocates nothing.
    words: Vec<(u64, u64)>,
}

/// Pages that were copied for a checkpoint, each with the content that its last copy went to, which
/// is not settled.
#[derive(Debug, Default)]
pub(super) struct Copied {
    changes: Vec<Change>,
    /// Where in `changes` a page is.
    places: HashMap<(usize, u64), usize>,
}

impl KeptMemory {
    pub(super) fn new(map: &Arc<MemoryMap>) -> Result<Self, CheckpointError> {
        Ok(Self {
            map: map.clone(),
            log: map.claim_global_log("checkpoints")?,
            images: Vec::new(),
            stores: Vec::new(),
            limit: u64::MAX,
            step_bytes: 0,
            words: Vec::new(),
        })
    }

    /// Bytes of all contents.
    pub(super) fn bytes_used(&self) -> u64 {
        self.stores.iter().map(PageStore::bytes_used).sum()
    }

    /// Bytes of the pages that differ between neighbouring checkpoints, equal ones included.
    pub(super) fn step_bytes(&self) -> u64 {
        self.step_bytes
    }

    fn bytes_of(&self, changes: &[Change]) -> u64 {
        let size = |change: &Change| self.images[change.image].block.page_size().bytes();
        changes.iter().map(size).sum()
    }

    /// Drops all images and contents: there are no checkpoints.
    pub(super) fn forget(&mut self) {
        self.step_bytes = 0;
        self.images.clear();
        self.stores.clear();
    }

    /// Checks that the map has the blocks of the images, as they were.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let blocks = self.map.ram_blocks();
        let name = |block: &RamBlock| block.id().to_owned();
        let is_in = |image: &Image| blocks.iter().any(|block| Arc::ptr_eq(block, &image.block));
        if let Some(gone) = self.images.iter().find(|image| !is_in(image)) {
            return Err(CheckpointError::BlockGone { block: name(&gone.block) });
        }
        let has = |block: &&Arc<RamBlock>| {
            self.images.iter().any(|image| Arc::ptr_eq(block, &image.block))
        };
        if let Some(joined) = blocks.iter().find(|block| !has(block)) {
            return Err(CheckpointError::BlockJoined { block: name(joined) });
        }
        let client = self.log.client();
        if let Some(changed) = self.images.iter().find(|image| !image.is_whole(client)) {
            return Err(CheckpointError::BlockChanged { block: name(&changed.block) });
        }
        Ok(())
    }

    /// Begins anew, without checkpoints: images of zeros, and all pages dirty that may be other
    /// than zero.
    pub(super) fn begin(&mut self) -> Result<(), CheckpointError> {
        self.forget();
        let (client, blocks) = (self.log.client(), self.map.ram_blocks());
        self.images.try_reserve(blocks.len()).map_err(|_| self.no_memory())?;
        for block in blocks {
            let size = usize::try_from(block.page_size().bytes()).unwrap_or(usize::MAX);
            let known = self.stores.iter().position(|store| store.page_size() == size);
            let store = known.unwrap_or(self.stores.len());
            if known.is_none() {
                self.stores.push(PageStore::new(size).map_err(|_| self.no_memory())?);
            }
            let dirty = self.set_of(&block)?;
            let image = Image::new(block, client, store, dirty);
            self.images.push(image.map_err(|_| self.no_memory())?);
        }
        // What is written from here on is in the log, and what was before is in memory.
        self.take_log(&mut ResetStats::default())?;
        for at in 0..self.images.len() {
            let block = self.images[at].block.clone();
            let (size, mut dirty) = (block.page_size(), self.set_of(&block)?);
            let (mut count, mut next) = (0, 0);
            for extent in block.data_extents(0..block.len()) {
                let pages = size.pages_spanned(extent.start, extent.end - extent.start);
                // Of a page larger than the host's there may be several extents.
                let pages = pages.start.max(next)..pages.end;
                (count, next) = (count + (pages.end - pages.start), pages.end);
                dirty.insert(pages);
            }
            self.images[at].replace_dirty(dirty, count);
        }
        Ok(())
    }

    fn set_of(&self, block: &RamBlock) -> Result<PageSet, CheckpointError> {
        let set = block.dirty().page_set();
        set.map_err(|_| self.no_memory())
    }

    fn no_memory(&self) -> CheckpointError {
        CheckpointError::NoMemory { used: self.bytes_used() }
    }

    /// Pages that are known to be dirty.
    pub(super) fn dirty_pages(&self) -> u64 {
        self.images.iter().map(Image::dirty_pages).sum()
    }

    /// Merges what accelerators have logged, and takes it from the log, which is not re-armed.
    pub(super) fn look(&mut self) -> Result<(), CheckpointError> {
        self.log.sync()?;
        for image in &mut self.images {
            image.take_dirty(&mut self.log)?;
        }
        Ok(())
    }

    /// Takes what is dirty from the log, and re-arms it: the pages may be read, or written.
    pub(super) fn take_log(&mut self, stats: &mut ResetStats) -> Result<(), CheckpointError> {
        let start = Instant::now();
        self.look()?;
        let got = Instant::now();
        for image in self.images.iter().filter(|image| image.dirty_pages() > 0) {
            self.log.clear(&image.block, 0..image.block.len())?;
        }
        stats.get += got.saturating_duration_since(start);
        stats.clear += got.elapsed();
        Ok(())
    }

    /// How many pages of image `at` are dirty, and have no copy yet.
    fn count_new(&mut self, at: usize, copied: &Copied) -> Result<u64, CheckpointError> {
        let room = self.images[at].take_words(&mut self.words);
        room.map_err(|_| self.no_memory())?;
        self.images[at].insert_words(&self.words);
        let is_new = |page: &u64| !copied.places.contains_key(&(at, *page));
        Ok(pages_of(&self.words).filter(is_new).count() as u64)
    }

    /// Makes room for copies of the pages of each size that are dirty and have none yet, and of as
    /// many again, within the limit.
    pub(super) fn reserve_twice(&mut self, copied: &mut Copied) -> Result<(), CheckpointError> {
        for at in 0..self.images.len() {
            self.reserve(at, 2, copied)?;
        }
        let used = self.bytes_used();
        for at in 0..self.stores.len() {
            let mut new = 0;
            for image in 0..self.images.len() {
                if self.images[image].store == at {
                    new += self.count_new(image, copied)?;
                }
            }
            let store = &mut self.stores[at];
            let within = self.limit.saturating_sub(used) / store.page_size() as u64;
            let pages = usize::try_from((2 * new).min(within)).unwrap_or(usize::MAX);
            store.reserve(pages).map_err(|_| CheckpointError::NoMemory { used })?;
        }
        Ok(())
    }

    /// Copies the pages that are dirty, after they were [taken](Self::take_log). They are not dirty
    /// any longer, unless this fails.
    pub(super) fn copy(&mut self, copied: &mut Copied) -> Result<(), CheckpointError> {
        let size = |image: &Image| image.block.page_size().bytes();
        let most: u64 = self.images.iter().map(|image| image.dirty_pages() * size(image)).sum();
        let used = self.bytes_used();
        if used.saturating_add(most) > self.limit {
            // Only then is it worth to look which pages were copied before.
            let mut needed = used;
            for at in 0..self.images.len() {
                needed += self.count_new(at, copied)? * size(&self.images[at]);
            }
            if needed > self.limit {
                return Err(CheckpointError::Limit { limit: self.limit, needed });
            }
        }
        for at in 0..self.images.len() {
            self.reserve(at, 1, copied)?;
            let room = self.images[at].take_words(&mut self.words);
            room.map_err(|_| self.no_memory())?;
            let result = self.copy_words(at, copied);
            if result.is_err() {
                self.images[at].insert_words(&self.words);
            }
            result?;
        }
        Ok(())
    }

    /// Makes room for what is kept beside their contents of `times` as many pages of image `at` as
    /// are dirty: so that nothing is allocated once all pages are copied.
    fn reserve(
        &mut self,
        at: usize,
        times: u64,
        copied: &mut Copied,
    ) -> Result<(), CheckpointError> {
        let used = self.bytes_used();
        let pages = times * self.images[at].dirty_pages();
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        let store = &mut self.stores[self.images[at].store];
        let no_memory = || CheckpointError::NoMemory { used };
        copied.places.try_reserve(pages).map_err(|_| no_memory())?;
        copied.changes.try_reserve(pages).map_err(|_| no_memory())?;
        // Contents of earlier rounds, too.
        store.reserve_settled(copied.changes.len() + pages).map_err(|_| no_memory())
    }

    fn copy_words(&mut self, at: usize, copied: &mut Copied) -> Result<(), CheckpointError> {
        let used = self.bytes_used();
        let image = &mut self.images[at];
        let (store, size) = (&mut self.stores[image.store], image.block.page_size());
        for page in pages_of(&self.words) {
            let place = copied.places.entry((at, page)).or_insert(usize::MAX);
            if *place == usize::MAX {
                let no_memory = || CheckpointError::NoMemory { used };
                image.reserve(page).map_err(|_| no_memory())?;
                let content = store.take().map_err(|_| no_memory())?;
                *place = copied.changes.len();
                copied.changes.push(Change { image: at, page, content });
            }
            let content = copied.changes[*place].content;
            image.block.read(page * size.bytes(), store.bytes_mut(content))?;
        }
        Ok(())
    }

    /// Drops copies: their pages are dirty again.
    pub(super) fn drop_copies(&mut self, copied: Copied) {
        for Change { image, page, content } in copied.changes {
            self.images[image].insert(page);
            self.stores[self.images[image].store].release(content);
        }
    }

    /// Makes the images those of the memory that was copied; returns what they held before where
    /// that was something else, by image and page: a step, unless this is the first checkpoint.
    pub(super) fn adopt(&mut self, copied: Copied, is_first: bool) -> Vec<Change> {
        let mut changes = copied.changes;
        changes.sort_unstable_by_key(|change| (change.image, change.page));
        changes.retain_mut(|change| {
            let image = &mut self.images[change.image];
            let store = &mut self.stores[image.store];
            let content = store.settle(change.content);
            change.content = image.set(change.page, content);
            if change.content == content {
                store.release(content);
                return false;
            }
            // Before the first there is nothing to go back to.
            !is_first
        });
        self.step_bytes += self.bytes_of(&changes);
        changes
    }

    /// Exchanges a page's content in its image and in `change`: the page is dirty then.
    pub(super) fn exchange(&mut self, change: &mut Change) {
        let image = &mut self.images[change.image];
        change.content = image.set(change.page, change.content);
        image.insert(change.page);
    }

    /// Counts the references of steps anew after a checkpoint was removed.
    pub(super) fn release(&mut self, removed: Removed) {
        let (more, less) = (self.bytes_of(&removed.shared), self.bytes_of(&removed.released));
        self.step_bytes = self.step_bytes + more - less;
        for Change { image, content, .. } in removed.shared {
            self.stores[self.images[image].store].share(content);
        }
        for Change { image, content, .. } in removed.released {
            self.stores[self.images[image].store].release(content);
        }
    }

    /// Writes what the images have to the pages that are dirty, which are so no longer; returns how
    /// many. If this fails, those that were not written are dirty still.
    pub(super) fn put_back(&mut self) -> Result<u64, CheckpointError> {
        let (mut pages, used) = (0, self.bytes_used());
        for image in &mut self.images {
            pages += image.dirty_pages();
            let room = image.take_words(&mut self.words);
            room.map_err(|_| CheckpointError::NoMemory { used })?;
            let (store, size) = (&self.stores[image.store], image.block.page_size().bytes());
            let content = |page: u64| (page * size, store.bytes(image.get(page)));
            let write = AssertUnwindSafe(|| {
                self.log.write(&image.block, pages_of(&self.words).map(content))
            });
            // A code watch's hook may panic.
            let result = catch_unwind(write);
            if !matches!(result, Ok(Ok(_))) {
                image.insert_words(&self.words);
            }
            result.unwrap_or_else(|panic| resume_unwind(panic)).map_err(|error| match error {
                MapError::Block(source) => CheckpointError::Block(source),
                other => other.into(),
            })?;
        }
        Ok(pages)
    }
}

impl fmt::Debug for KeptMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptMemory")
            .field("blocks", &self.images.len())
            .field("bytes", &self.bytes_used())
            .field("dirty_pages", &self.dirty_pages())
            .finish_non_exhaustive()
    }
}

/// The pages of words, in order.
fn pages_of(words: &[(u64, u64)]) -> impl Iterator<Item = u64> {
    runs(words.iter().copied()).flatten()
}
