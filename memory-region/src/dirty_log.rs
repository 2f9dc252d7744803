//! The front door of the dirty log: who logs, and what they find.

use std::ops::Range;
use std::sync::Arc;

use ram_block::{DirtyClient, DirtySnapshot, Harvest, RamBlock};

use crate::claims::Claim;
use crate::error::MapError;
use crate::flat_view::FlatView;
use crate::leaving::Leaving;
use crate::listener::{ListenerError, MemoryListener};
use crate::map::MemoryMap;
use crate::region::RegionId;
use crate::section::Section;

/// A client's log that is on, and that nobody else harvests, as long as this is kept.
///
/// Each client's bits can be taken once. Whoever harvests a log claims it, so that a
/// second migration, or a second screen of the same display, is an error and not a
/// loss of pages. Dropped within an update's closure or by a listener, it ends after that
/// update.
#[must_use = "the log is switched off when this is dropped"]
#[derive(Debug)]
pub struct LogClaim {
    map: Arc<MemoryMap>,
    /// The region that is logged; all RAM if there is none.
    region: Option<RegionId>,
    claim: Claim,
}

impl Drop for LogClaim {
    fn drop(&mut self) {
        self.map.end(Leaving::Log(self.region, self.claim.clone()));
    }
}

impl MemoryMap {
    /// Switches on the dirty log of one RAM region for `client`, and keeps others from
    /// claiming it, until the claim is dropped.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`], and as [`set_log`](Self::set_log).
    pub fn claim_log(
        self: &Arc<Self>,
        region: RegionId,
        client: DirtyClient,
    ) -> Result<LogClaim, MapError> {
        let (name, block) = self.ram_of(region)?;
        let not_ram = || MapError::NotRam { name: name.to_string(), client };
        let claim = Claim { block: Some(block.ok_or_else(not_ram)?), client, number: 0 };
        let what = format!("\"{name}\"");
        self.claim(Some(region), claim, what, || self.set_log(region, client, true))
    }

    /// Switches on the dirty log of all RAM for `client`, and keeps others from claiming
    /// it, until the claim is dropped.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`], and as [`set_global_log`](Self::set_global_log).
    pub fn claim_global_log(self: &Arc<Self>, client: DirtyClient) -> Result<LogClaim, MapError> {
        let claim = Claim { block: None, client, number: 0 };
        self.claim(None, claim, "all RAM".to_owned(), || self.set_global_log(client, true))
    }

    fn claim(
        self: &Arc<Self>,
        region: Option<RegionId>,
        mut claim: Claim,
        what: String,
        switch_on: impl FnOnce() -> Result<(), MapError>,
    ) -> Result<LogClaim, MapError> {
        if !self.claims().take(&mut claim) {
            return Err(MapError::Claimed { client: claim.client, what });
        }
        if let Err(error) = switch_on() {
            self.drop_claim(&claim);
            return Err(error);
        }
        Ok(LogClaim { map: self.clone(), region, claim })
    }

    pub(crate) fn drop_claim(&self, claim: &Claim) {
        let ended = self.claims().end(|other| other.number == claim.number);
        drop(ended); // no longer locked
    }

    /// Switches the dirty log of one RAM region on or off for `client`.
    ///
    /// Everything written from the return of this call on is logged. The map
    /// switches the clients of its blocks: [`DirtyMemory::enable`] is not needed.
    ///
    /// # Errors
    ///
    /// [`MapError::NotRam`], [`MapError::UnknownRegion`], [`MapError::Dirty`] if nobody can
    /// log for the client (see [`MapEdit::set_log`](crate::MapEdit::set_log)),
    /// [`MapError::Refused`], [`MapError::Nested`].
    ///
    /// [`DirtyMemory::enable`]: ram_block::DirtyMemory::enable
    pub fn set_log(&self, region: RegionId, client: DirtyClient, on: bool) -> Result<(), MapError> {
        self.update(|map| map.set_log(region, client, on))
    }

    /// Switches the dirty log of all RAM, present and future, on or off for `client`.
    ///
    /// # Errors
    ///
    /// [`MapError::Dirty`] if nobody can log for the client, or a block cannot,
    /// [`MapError::Refused`], [`MapError::Nested`].
    pub fn set_global_log(&self, client: DirtyClient, on: bool) -> Result<(), MapError> {
        self.update(|map| map.set_global_log(client, on))
    }

    /// Merges what accelerators know of writes to `region` into its block, for every
    /// client that is on; nothing else is asked for. Regions without RAM know of none.
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

    /// Merges what accelerators know of writes to all RAM that is logged.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn sync_all_dirty_logs(&self) -> Result<(), MapError> {
        self.sync_all(false)
    }

    /// As [`sync_all_dirty_logs`](Self::sync_all_dirty_logs), when no guest runs any more
    /// and nobody will read what this does not bring: the last stage of a migration.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn sync_last_dirty_logs(&self) -> Result<(), MapError> {
        self.sync_all(true)
    }

    fn sync_all(&self, last: bool) -> Result<(), MapError> {
        for entry in self.current().spaces.iter() {
            for listener in &entry.listeners {
                let at_once = listener.sync_all(last);
                if !at_once.map_err(|source| unsynced(&**listener, "all RAM", source))? {
                    let listener = std::slice::from_ref(listener);
                    let synced = |view: Arc<FlatView>| sync_sections(&view, listener, |_| true);
                    entry.space.followed().try_for_each(synced)?;
                }
            }
        }
        Ok(())
    }

    /// Says that the `bytes` of `block` are about to be read: a listener that reports a
    /// page's first write only is to watch them again from now on. Call it after the bits
    /// of these pages were taken, and before the pages are read.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn log_clear(&self, block: &Arc<RamBlock>, bytes: Range<u64>) -> Result<(), MapError> {
        for entry in self.current().spaces.iter().filter(|entry| !entry.listeners.is_empty()) {
            // What comes too, as a sync asked there: what was reported is to be watched again.
            for view in entry.space.followed() {
                clear_sections(&view, &entry.listeners, block, &bytes)?;
            }
        }
        Ok(())
    }

    /// Asks for the block wherever it is mapped: other regions may show it too.
    ///
    /// No lock is held meanwhile: a section that a commit removes at this moment has
    /// been synced by its listener. One that it brings is asked for, too: guests may write
    /// through it before the map is published.
    fn sync_block(&self, block: &Arc<RamBlock>) -> Result<(), MapError> {
        for entry in self.current().spaces.iter().filter(|entry| !entry.listeners.is_empty()) {
            let wanted = |section: &Section| shows(section, block);
            let synced = |view: Arc<FlatView>| sync_sections(&view, &entry.listeners, wanted);
            entry.space.followed().try_for_each(synced)?;
        }
        Ok(())
    }

    /// Takes `client`'s dirty pages of the `bytes` of a RAM region: syncs the region, takes
    /// the bits of exactly the pages that the bytes touch, and lets listeners watch these
    /// pages again ([`log_clear`](Self::log_clear)).
    ///
    /// Read the pages after this call, not before: what is written later is in the
    /// next harvest.
    ///
    /// # Errors
    ///
    /// [`MapError::NotRam`], [`MapError::Sync`], [`MapError::UnknownRegion`], or
    /// [`MapError::Dirty`] if the client is off or the region has no such pages.
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
        self.sync_block(&block)?;
        let len = bytes.end.saturating_sub(bytes.start);
        let pages = block.page_size().touched(bytes.start, len);
        let harvest = block.dirty().snapshot_and_clear_into(client, pages.clone(), buffer)?;
        // An error gives the bits back.
        let page = block.page_size().bytes();
        self.log_clear(&block, pages.start * page..pages.end * page)?;
        Ok(harvest)
    }
}

fn shows(section: &Section, block: &Arc<RamBlock>) -> bool {
    section.ram().is_some_and(|ram| Arc::ptr_eq(ram, block))
}

/// Asks `listeners` for the sections that are logged and `wanted`.
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

/// Lets `listeners` watch the `bytes` of a block again, in the sections that log it.
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
