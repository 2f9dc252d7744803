//! Writers other than an accelerator, that log by guest address: a vhost-user back end, a
//! DMA engine, a VFIO device.
//!
//! They follow an address space as listeners do. A log by address means the map as it was
//! when the write was made: so a source is asked for what a commit removes while it still
//! resolves addresses in the former map. The writer must be off what is removed by then,
//! which its own listener sees to in `prepare`, and on what is added in `commit`, later. One page
//! of a log may show parts of several sections; a bit can be taken once, so it is resolved to all
//! of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_block::PageSize;

use crate::error::ListenerError;
use crate::listener::change::{MemoryListener, ViewChange};
use crate::listener::log_batch::LogWords;
use crate::view::section::Section;

/// A log of writes by guest address, one bit a page.
pub trait DirtySource: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// The grain of the log, which need not be that of the blocks.
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
    /// If the log cannot be read; bits that were taken must have been reported.
    fn take(&self, pages: Range<u64>, found: &mut dyn FnMut(u64, u64))
    -> Result<(), ListenerError>;
}

/// A [`DirtySource`] as a listener of the address space whose addresses it logs:
/// whenever somebody syncs, its writes reach every client that is on.
///
/// Its priority is 0, as that of an accelerator. The listener of the writer itself comes
/// above it: it has a higher priority, or is registered later. So the writer is off what goes
/// before this one looks at the log for the last time, and on what comes only after: a bit
/// for what comes would be taken as one for what was there before.
///
/// ```
/// # use memory_region::{AddressSpace, DirtySourceListener, MapError, MemoryMap, VhostLog};
/// # fn example(memory: &MemoryMap, space: &AddressSpace) -> Result<(), Box<dyn std::error::Error>>
/// {
/// let log = VhostLog::new("net0", space.view().ram())?;
/// // ... hand log.block().file() to the back end (SET_LOG_BASE) ...
/// memory.add_listener(space, DirtySourceListener::new(log))?;
/// # Ok(())
/// # }
/// ```
pub struct DirtySourceListener<S> {
    source: S,
    /// Held while bits are taken and merged: a sync that
    /// finds nothing because another has just taken it, waits until that has merged it.
    known: Mutex<TrackedRam>,
}

#[derive(Default)]
struct TrackedRam {
    /// The RAM of the space, by start.
    ram: BTreeMap<u64, Section>,
    /// Where words of the log are kept until they are merged.
    words: Vec<u64>,
}

impl<S: DirtySource> DirtySourceListener<S> {
    /// The listener of a source.
    pub fn new(source: S) -> Arc<Self> {
        Arc::new(Self { source, known: Mutex::default() })
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn lock(&self) -> MutexGuard<'_, TrackedRam> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was written to a section's addresses, and marks it in the RAM that is known.
    fn collect(
        &self,
        ram: &BTreeMap<u64, Section>,
        words: &mut Vec<u64>,
        section: &Section,
    ) -> Result<(), ListenerError> {
        let page = self.source.page_size();
        let pages = page.page_of(section.start)..page.page_of(section.last) + 1;
        let mut words = LogWords::new(ram, page, words);
        self.source.take(pages, &mut |base, bits| words.push(base, bits))
    }
}

impl<S: DirtySource> MemoryListener for DirtySourceListener<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let TrackedRam { ram, words } = &mut *self.lock();
        let relogged = change.relogged.iter().map(|change| &change.section);
        for section in change.removed.iter().chain(relogged) {
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
        // Of one that is not known here, yet or any more, bits would be taken for nobody.
        match ram.get(&section.start) {
            Some(section) => self.collect(ram, words, section),
            None => Ok(()),
        }
    }

    fn sync_all(&self, _: bool) -> Result<bool, ListenerError> {
        let TrackedRam { ram, words } = &mut *self.lock();
        ram.values().try_for_each(|section| self.collect(ram, words, section))?;
        Ok(true)
    }
}

impl<S: DirtySource> fmt::Debug for DirtySourceListener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtySourceListener").field("source", &self.source.name()).finish()
    }
}
