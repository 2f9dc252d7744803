//! Dirty logs of writers other than an accelerator, by guest address: a vhost-user back end, a
//! DMA engine, a VFIO device.
//!
//! A bit of such a log means the map as it was at the write. So when a commit removes sections,
//! the listener fetches their bits first, and resolves the addresses in the former map. The
//! writer's own listener stops it from using these sections in `prepare`, which comes before, and
//! lets it use what is added in `commit`, which comes later. One page of the log may lie in
//! several sections; its bit can be taken only once, so it marks the page in all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_block::PageSize;

use crate::error::ListenerError;
use crate::listener::change::{MemoryListener, ViewChange};
use crate::listener::log_batch::LogBatch;
use crate::view::section::Section;

/// A log of writes by guest address, one bit a page.
pub trait ExternalDirtyLog: Send + Sync {
    /// The log's name in errors and log messages.
    fn name(&self) -> &str;

    /// The bytes of guest address that one bit stands for; they may differ from the blocks' page
    /// size.
    fn page_size(&self) -> PageSize;

    /// Takes the bits of pages `pages` (guest address divided by the page size), so that
    /// they are zero afterwards; calls `found` with each non-zero word of 64 bits and the
    /// number of the page of its bit 0. It may report pages outside of `pages` too. Pages
    /// that the log does not have were not written.
    ///
    /// Called by one thread at a time.
    ///
    /// # Errors
    ///
    /// If the log cannot be read. Bits that were cleared must have been reported.
    fn fetch_and_clear(
        &self,
        pages: Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ListenerError>;
}

/// A [`ExternalDirtyLog`] as a listener of the address space whose addresses it logs:
/// each sync merges its bits into the bitmaps of all clients that are on.
///
/// Its priority is 0, like an accelerator's. The writer's own listener must come after it: with a
/// higher priority, or registered later. Then the writer has stopped using removed sections before
/// this listener fetches their bits for the last time, and starts using added ones only after
/// that. A bit for an added section would otherwise be resolved to what was at the address before.
///
/// ```
/// # use memory_region::{AddressSpace, ExternalDirtyLogListener, MapError, MemoryMap, VhostLog};
/// # fn example(memory: &MemoryMap, space: &AddressSpace) -> Result<(), Box<dyn std::error::Error>>
/// {
/// let log = VhostLog::new("net0", space.view().ram())?;
/// // ... hand log.block().file() to the back end (SET_LOG_BASE) ...
/// memory.add_listener(space, ExternalDirtyLogListener::new(log))?;
/// # Ok(())
/// # }
/// ```
pub struct ExternalDirtyLogListener<S> {
    log: S,
    /// Locked while bits are fetched and merged: a sync that finds no bits because another thread
    /// has just fetched them returns only after that thread has merged them.
    known: Mutex<TrackedRam>,
}

#[derive(Default)]
struct TrackedRam {
    /// The RAM of the space, by start.
    ram: BTreeMap<u64, Section>,
    /// The buffer of words that are not merged yet; kept for its memory.
    words: Vec<u64>,
}

impl<S: ExternalDirtyLog> ExternalDirtyLogListener<S> {
    /// A listener that fetches from `log`.
    pub fn new(log: S) -> Arc<Self> {
        Arc::new(Self { log, known: Mutex::default() })
    }

    /// The log that it fetches from.
    pub fn log(&self) -> &S {
        &self.log
    }

    fn lock(&self) -> MutexGuard<'_, TrackedRam> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the bits of a section's addresses, and merges them into the blocks of `ram`.
    fn collect(
        &self,
        ram: &BTreeMap<u64, Section>,
        words: &mut Vec<u64>,
        section: &Section,
    ) -> Result<(), ListenerError> {
        let page = self.log.page_size();
        let pages = page.page_of(section.start)..page.page_of(section.last) + 1;
        let mut words = LogBatch::new(ram, page, words);
        self.log.fetch_and_clear(pages, &mut |base, bits| words.push(base, bits))
    }
}

impl<S: ExternalDirtyLog> MemoryListener for ExternalDirtyLogListener<S> {
    fn name(&self) -> &str {
        self.log.name()
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let TrackedRam { ram, words } = &mut *self.lock();
        let log_changed = change.log_changed.iter().map(|change| &change.section);
        for section in change.removed.iter().chain(log_changed) {
            if ram.contains_key(&section.start) {
                self.collect(ram, words, section)?;
            }
        }
        for section in &change.removed {
            ram.remove(&section.start);
        }
        for section in change.added.iter().filter(|section| section.ram().is_some()) {
            ram.insert(section.start, section.clone());
        }
        Ok(())
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        let TrackedRam { ram, words } = &mut *self.lock();
        // The bits of a section that is not here, yet or any more, could be resolved to no block.
        match ram.get(&section.start) {
            Some(section) => self.collect(ram, words, section),
            None => Ok(()),
        }
    }

    fn sync_all(&self) -> Result<bool, ListenerError> {
        let TrackedRam { ram, words } = &mut *self.lock();
        ram.values().try_for_each(|section| self.collect(ram, words, section))?;
        Ok(true)
    }
}

impl<S: ExternalDirtyLog> fmt::Debug for ExternalDirtyLogListener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalDirtyLogListener").field("log", &self.log.name()).finish()
    }
}
