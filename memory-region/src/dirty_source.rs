//! Writers other than an accelerator, that log by guest address: a vhost-user back end, a
//! DMA engine, a VFIO device.
//!
//! They follow an address space as listeners do. A log by address means the map as it was
//! when the write was made: so a source is asked for what a commit removes while it still
//! resolves addresses in the former map. The writer must be off what is removed by then,
//! which its own listener sees to in `prepare`. One page of a log may show parts of several
//! sections; a bit can be taken once, so it is resolved to all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_block::PageSize;

use crate::listener::{ListenerError, MemoryListener, ViewChange};
use crate::section::Section;

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
/// ```
/// # use memory_region::{AddressSpace, DirtySourceListener, MapError, MemoryMap, VhostLog};
/// # fn example(memory: &MemoryMap, space: &AddressSpace) -> Result<(), Box<dyn std::error::Error>> {
/// let log = VhostLog::new("net0", space.view().ram())?;
/// // ... hand log.block().file() to the back end (SET_LOG_BASE) ...
/// memory.add_listener(space, DirtySourceListener::new(log))?;
/// # Ok(())
/// # }
/// ```
pub struct DirtySourceListener<S> {
    source: S,
    /// The RAM of the space, by start. Held while bits are taken and merged: a sync that
    /// finds nothing because another has just taken it, waits until that has merged it.
    ram: Mutex<BTreeMap<u64, Section>>,
}

impl<S: DirtySource> DirtySourceListener<S> {
    /// The listener of a source.
    pub fn new(source: S) -> Arc<Self> {
        Arc::new(Self { source, ram: Mutex::default() })
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Section>> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was written from `first` to `last`, and marks it in `ram`.
    fn collect(
        &self,
        ram: &BTreeMap<u64, Section>,
        first: u64,
        last: u64,
    ) -> Result<(), ListenerError> {
        let page = self.source.page_size();
        let pages = page.page_of(first)..page.page_of(last) + 1;
        self.source.take(pages, &mut |base, bits| mark(ram, page, base, bits))
    }
}

/// Marks the pages of a word of a log, run by run.
fn mark(ram: &BTreeMap<u64, Section>, page: PageSize, base: u64, mut bits: u64) {
    while bits != 0 {
        let first = bits.trailing_zeros();
        let ones = (!(bits >> first)).trailing_zeros();
        bits &= u64::MAX.checked_shl(first + ones).unwrap_or(0);
        // Pages past the end of the space are nobody's.
        let number = base.saturating_add(first.into());
        let Some(start) = number.checked_mul(page.bytes()) else { return };
        let last = start.saturating_add(u64::from(ones) * page.bytes() - 1);
        let before = ram.range(..start).next_back();
        let sections = before.into_iter().chain(ram.range(start..=last));
        for (_, section) in sections.filter(|(_, section)| section.last >= start) {
            if let Some(block) = section.ram() {
                let (from, to) = (section.start.max(start), section.last.min(last));
                block.dirty().mark(section.offset + (from - section.start), to - from + 1);
            }
        }
    }
}

impl<S: DirtySource> MemoryListener for DirtySourceListener<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut ram = self.lock();
        for section in change.removed.iter().filter(|section| ram.contains_key(&section.start)) {
            self.collect(&ram, section.start, section.last)?;
        }
        for relogged in &change.relogged {
            let Section { start, last, .. } = relogged.section;
            if ram.contains_key(&start) {
                self.collect(&ram, start, last)?;
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
        let ram = self.lock();
        self.collect(&ram, section.start, section.last)
    }

    fn sync_all(&self, _: bool) -> Result<bool, ListenerError> {
        let ram = self.lock();
        for section in ram.values() {
            self.collect(&ram, section.start, section.last)?;
        }
        Ok(true)
    }
}

impl<S: DirtySource> fmt::Debug for DirtySourceListener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtySourceListener").field("source", &self.source.name()).finish()
    }
}
