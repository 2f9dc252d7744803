//! The dirty log of the map's RAM: switched on and off, synced, harvested.

use std::ops::Range;
use std::sync::Arc;

use ram_block::{DirtyClient, DirtyError, DirtySnapshot, Harvest, RamBlock};

use crate::error::ListenerError;
use crate::error::MapError;
use crate::listener::change::MemoryListener;
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;
use crate::view::flat_view::FlatView;
use crate::view::section::Section;

impl MemoryMap {
    /// Switches the dirty log of one RAM region on or off for `client`.
    ///
    /// Everything written from the return of this call on is logged. The map
    /// switches the clients of its blocks: [`DirtyMemory::enable`] is not needed.
    ///
    /// The first harvest may report pages that were not written: an accelerator may report *all*
    /// pages first, so that starting the log costs nothing, as KVM does with manual protection
    /// (KVM_DIRTY_LOG_INITIALLY_SET, the default of `kvm-accel` where KVM has it). A migration,
    /// which sends all of memory first, loses nothing by that. A client that wants exactly the
    /// pages that are written from now on needs `KvmConfig::initially_set` to be false.
    ///
    /// # Errors
    ///
    /// [`MapError::NotRam`], [`MapError::UnknownRegion`], [`MapError::Dirty`] if the
    /// client is not registered (see [`Transaction::set_log`](crate::Transaction::set_log)),
    /// [`MapError::Claimed`] if a log that is claimed is to be switched off,
    /// [`MapError::Refused`], [`MapError::Reentrant`].
    ///
    /// [`DirtyMemory::enable`]: ram_block::DirtyMemory::enable
    pub fn set_log(&self, region: RegionId, client: DirtyClient, on: bool) -> Result<(), MapError> {
        self.transaction(|map| map.set_log(region, client, on))
    }

    /// Switches the dirty log of all RAM, present and future, on or off for `client`.
    ///
    /// # Errors
    ///
    /// [`MapError::Dirty`] if the client is not registered, or a block cannot log for it,
    /// [`MapError::Claimed`] if a log that is claimed is to be switched off,
    /// [`MapError::Refused`], [`MapError::Reentrant`].
    pub fn set_global_log(&self, client: DirtyClient, on: bool) -> Result<(), MapError> {
        self.transaction(|map| map.set_global_log(client, on))
    }

    /// Merges the writes to `region` that accelerators and other listeners have logged into its
    /// block, for every client that is on. Asks for this region's block only; does nothing for a
    /// region without RAM.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`], [`MapError::UnknownRegion`].
    pub fn sync_dirty_log(&self, region: RegionId) -> Result<(), MapError> {
        match self.ram_of(region)? {
            (_, Some(block)) => self.sync_block(&block),
            _ => Ok(()),
        }
    }

    /// Merges the writes to all logged RAM that accelerators and other listeners have logged.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn sync_all_dirty_logs(&self) -> Result<(), MapError> {
        for entry in self.current().spaces.iter() {
            for listener in &entry.listeners {
                let at_once = listener.sync_all();
                if !at_once.map_err(|source| unsynced(&**listener, "all RAM", source))? {
                    let listener = std::slice::from_ref(listener);
                    let synced = |view: Arc<FlatView>| sync_sections(&view, listener, |_| true);
                    entry.space.visible_views().try_for_each(synced)?;
                }
            }
        }
        Ok(())
    }

    /// Re-arms the log of `bytes` of `block`: a listener that reports only the first write to a
    /// page reports the next one again (KVM_CLEAR_DIRTY_LOG). Call it after the bits of these
    /// pages were taken, and before the pages are read; the harvests of this crate do.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn log_clear(&self, block: &Arc<RamBlock>, bytes: Range<u64>) -> Result<(), MapError> {
        for entry in self.current().spaces.iter().filter(|entry| !entry.listeners.is_empty()) {
            // In the pending view too: a sync asks there, and what it reported must be re-armed.
            for view in entry.space.visible_views() {
                clear_sections(&view, &entry.listeners, block, &bytes)?;
            }
        }
        Ok(())
    }

    /// Syncs the block wherever it is mapped: several regions may show it.
    ///
    /// Takes no lock of the map. A section that a commit removes meanwhile is synced by its
    /// listener as it is removed. Sections of a pending view are synced as well: guests may write
    /// through them before the view is published.
    fn sync_block(&self, block: &Arc<RamBlock>) -> Result<(), MapError> {
        for entry in self.current().spaces.iter().filter(|entry| !entry.listeners.is_empty()) {
            let wanted = |section: &Section| shows(section, block);
            let synced = |view: Arc<FlatView>| sync_sections(&view, &entry.listeners, wanted);
            entry.space.visible_views().try_for_each(synced)?;
        }
        Ok(())
    }

    /// Takes `client`'s dirty pages of the `bytes` of a RAM region: syncs the region, takes the
    /// bits of exactly the pages that the bytes span, and re-arms the log of these pages
    /// ([`log_clear`](Self::log_clear)).
    ///
    /// Read the pages after this call, not before: what is written later is in the
    /// next harvest. The first harvest after a log was switched on may give all pages, where
    /// the accelerator starts so: see [`set_log`](Self::set_log).
    ///
    /// For a log without a claim. Two clients of the same number would eat each other's bits:
    /// where that is possible, [`claim_log`](Self::claim_log) and harvest through the claim.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`], [`MapError::NotRam`], [`MapError::Sync`],
    /// [`MapError::UnknownRegion`], or [`MapError::Dirty`] if the client is off or the region
    /// has no such pages.
    pub fn snapshot_and_clear(
        &self,
        region: RegionId,
        client: DirtyClient,
        bytes: Range<u64>,
    ) -> Result<Harvest, MapError> {
        self.snapshot_and_clear_into(region, client, bytes, DirtySnapshot::default())
    }

    /// As [`snapshot_and_clear`](Self::snapshot_and_clear), with the buffer of an
    /// earlier snapshot.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear`](Self::snapshot_and_clear).
    pub fn snapshot_and_clear_into(
        &self,
        region: RegionId,
        client: DirtyClient,
        bytes: Range<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, MapError> {
        let (name, block) = self.ram_of(region)?;
        let block = block.ok_or_else(|| MapError::NotRam { name: name.to_string(), client })?;
        let claimed = || MapError::Claimed { client, what: format!("\"{name}\"") };
        if block.dirty().is_claimed(client) {
            return Err(claimed()); // without a sync
        }
        let harvest = self.harvest(&block, bytes, |pages| {
            block.dirty().snapshot_and_clear_into(client, pages, buffer)
        });
        harvest.map_err(|error| match error {
            MapError::Dirty(DirtyError::Claimed { .. }) => claimed(),
            error => error,
        })
    }

    /// Syncs a block, takes bits of the pages that the bytes span, and re-arms the log of these
    /// pages.
    pub(crate) fn harvest(
        &self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
        take: impl FnOnce(Range<u64>) -> Result<Harvest, DirtyError>,
    ) -> Result<Harvest, MapError> {
        self.sync_block(block)?;
        let len = bytes.end.saturating_sub(bytes.start);
        let pages = block.page_size().pages_spanned(bytes.start, len);
        let harvest = take(pages.clone())?;
        // An error gives the bits back.
        let page = block.page_size().bytes();
        self.log_clear(block, pages.start * page..pages.end * page)?;
        Ok(harvest)
    }
}

fn shows(section: &Section, block: &Arc<RamBlock>) -> bool {
    section.ram().is_some_and(|ram| Arc::ptr_eq(ram, block))
}

/// Syncs the sections that are logged and `wanted`.
fn sync_sections(
    view: &FlatView,
    listeners: &[Arc<dyn MemoryListener>],
    wanted: impl Fn(&Section) -> bool,
) -> Result<(), MapError> {
    let logged = |section: &&Section| !section.log().is_empty() && section.ram().is_some();
    for section in view.sections().iter().filter(logged).filter(|section| wanted(section)) {
        for listener in listeners {
            let synced = listener.sync(section);
            synced.map_err(|source| unsynced(&**listener, section.name(), source))?;
        }
    }
    Ok(())
}

/// Re-arms the log of the `bytes` of a block in the sections that log it.
fn clear_sections(
    view: &FlatView,
    listeners: &[Arc<dyn MemoryListener>],
    block: &Arc<RamBlock>,
    bytes: &Range<u64>,
) -> Result<(), MapError> {
    for section in view.sections().iter().filter(|section| shows(section, block)) {
        let size = u64::try_from(section.size()).unwrap_or(u64::MAX);
        let end = section.offset().saturating_add(size);
        let part = bytes.start.max(section.offset())..bytes.end.min(end);
        if section.log().is_empty() || part.is_empty() {
            continue;
        }
        for listener in listeners {
            let cleared = listener.log_clear(section, part.clone());
            cleared.map_err(|source| unsynced(&**listener, section.name(), source))?;
        }
    }
    Ok(())
}

fn unsynced(listener: &dyn MemoryListener, region: &str, source: ListenerError) -> MapError {
    let (listener, region) = (listener.name().to_owned(), region.to_owned());
    MapError::Sync { listener, region, source }
}
