//! The dirty logs of accelerators and other listeners: synced, and re-armed.

use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;

use crate::error::ListenerError;
use crate::error::MapError;
use crate::listener::change::MemoryListener;
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;
use crate::view::flat_view::FlatView;
use crate::view::section::Section;

impl MemoryMap {
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
    /// page reports the next one again (KVM_CLEAR_DIRTY_LOG). To be called after the bits of these
    /// pages were taken, and before the pages are read.
    pub(crate) fn log_clear(
        &self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
    ) -> Result<(), MapError> {
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
    pub(crate) fn sync_block(&self, block: &Arc<RamBlock>) -> Result<(), MapError> {
        for entry in self.current().spaces.iter().filter(|entry| !entry.listeners.is_empty()) {
            let wanted = |section: &Section| shows(section, block);
            let synced = |view: Arc<FlatView>| sync_sections(&view, &entry.listeners, wanted);
            entry.space.visible_views().try_for_each(synced)?;
        }
        Ok(())
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
