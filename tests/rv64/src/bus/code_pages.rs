//! Which pages of RAM have decoded code, and how often each of them was written.
//!
//! # Why a block that is current was decoded from what is in memory
//!
//! The watch over a block of RAM reports the first write to a page after each
//! [`watch`](CodeWatch::watch) of it, and then ends for this page. [`CodePages::watch`] reads the
//! generation *before* it watches: a report that comes after that read raises the number, so what
//! is decoded is found outdated. Were it read after the watch, a report in between would end the
//! watch unseen: the number would be new, and no further write would be reported.
//!
//! One watch serves all harts: a block of RAM has one. Each hart compares the numbers itself, so
//! that a report takes no lock and changes nothing but two counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ram_block::{CodeWatch, DirtyError, RamBlock};

use crate::bus::bus::{CODE_PAGE, CodePage};

#[derive(Debug)]
struct Counters {
    /// Reports of each [`CODE_PAGE`] or larger page, by its number in the block.
    reports: Box<[AtomicU64]>,
    /// All of these together: where a bus finds it without a detour.
    epoch: Arc<AtomicU64>,
}

impl Counters {
    fn written(&self, page: u64) {
        let page = usize::try_from(page).ok().and_then(|page| self.reports.get(page));
        if let Some(reports) = page {
            reports.fetch_add(1, Ordering::Release);
        }
        // After the page's: a hart that reads this reads that.
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// The pages of one block of RAM, for all harts that execute code in it. Of a block that is tracked
/// in smaller pages, several are one.
#[derive(Debug)]
pub struct CodePages {
    ram: Arc<RamBlock>,
    /// How many pages of the block are one of these.
    group: u64,
    counters: Arc<Counters>,
    watch: CodeWatch,
}

impl CodePages {
    /// Watches code in `ram`.
    ///
    /// # Errors
    ///
    /// [`DirtyError::Watched`] if another watches the block, [`DirtyError::NoMemory`].
    pub fn new(ram: &Arc<RamBlock>) -> Result<Self, DirtyError> {
        let group = (CODE_PAGE / ram.page_size().bytes()).max(1);
        let counters = Arc::new(Counters {
            reports: (0..ram.pages().div_ceil(group)).map(|_| AtomicU64::new(0)).collect(),
            epoch: Arc::default(),
        });
        let watch = ram.dirty().watch_code({
            let counters = counters.clone();
            move |page| counters.written(page / group)
        })?;
        Ok(Self { ram: ram.clone(), group, counters, watch })
    }

    /// The page with byte `offset` of `block`, if it is the block of these, as far as the `len`
    /// bytes from there on.
    pub(super) fn page_at(&self, block: &Arc<RamBlock>, offset: u64, len: u64) -> Option<CodePage> {
        if !Arc::ptr_eq(block, &self.ram) {
            return None;
        }
        let bytes = self.bytes();
        let page = usize::try_from(offset / bytes).ok()?;
        let generation = self.counters.reports.get(page)?.load(Ordering::Acquire);
        Some(CodePage { page, offset, generation, len: len.min(bytes - offset % bytes) })
    }

    /// As [`page_at`](Self::page_at), and watches the page.
    pub(super) fn watch(&self, block: &Arc<RamBlock>, offset: u64, len: u64) -> Option<CodePage> {
        self.watch_with(block, offset, len, || ())
    }

    /// As [`watch`](Self::watch), calling `between` between its two steps, for the tests.
    fn watch_with(
        &self,
        block: &Arc<RamBlock>,
        offset: u64,
        len: u64,
        between: impl FnOnce(),
    ) -> Option<CodePage> {
        let page = self.page_at(block, offset, len)?;
        between();
        let first = offset / self.bytes() * self.group;
        self.watch.watch(first..(first + self.group).min(self.ram.pages())).ok()?;
        Some(page)
    }

    /// Bytes of a page.
    fn bytes(&self) -> u64 {
        self.group * self.ram.page_size().bytes()
    }

    /// Writes to watched pages so far.
    pub(super) fn epoch(&self) -> &Arc<AtomicU64> {
        &self.counters.epoch
    }
}

#[cfg(test)]
mod tests;
