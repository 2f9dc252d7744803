//! Claims of logs: the exclusive right to harvest one.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use ram_block::{DirtyClaim, DirtyClient, DirtySnapshot, Harvest, RamBlock};

use crate::error::MapError;
use crate::map::memory_map::{DeferredDrop, MemoryMap};
use crate::region_id::RegionId;
use crate::transaction::claims::Claim;

/// A client's log, switched on and harvested through this value alone until it is dropped.
///
/// Each client's bits can be taken once. Whoever harvests a log claims it and takes its bits
/// through the claim. While it stands, harvests without it are errors, whichever way they take
/// ([`MapError::Claimed`] at the map, `DirtyError::Claimed` at the block), and so are switching
/// the log off and a second claim: by a second migration, a second screen of the same display,
/// or another map that shows the block. A claim of all RAM has the blocks that come later, too,
/// and ends for those that leave the map.
///
/// Dropped within an update's closure or by a listener, it ends after that update.
///
/// ```
/// use memory_region::{MapError, MemoryMap};
/// use ram_block::{DirtyClient, RamBlock};
///
/// let memory = MemoryMap::new();
/// let ram = memory.transaction(|map| map.ram("ram", RamBlock::anonymous("pc.ram", 1 << 20)?))?;
/// let log = memory.claim_log(ram, DirtyClient::VGA)?;
/// memory.ram_block(ram)?.write(0x3000, b"guest")?;
/// let refused = memory.snapshot_and_clear(ram, DirtyClient::VGA, 0..1 << 20);
/// assert!(matches!(refused, Err(MapError::Claimed { .. })));
/// assert!(log.snapshot_and_clear(ram, 0..1 << 20)?.commit().is_dirty(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the log is switched off when this is dropped"]
#[derive(Debug)]
pub struct LogClaim {
    map: Arc<MemoryMap>,
    claim: Claim,
}

impl Drop for LogClaim {
    fn drop(&mut self) {
        self.map.end(DeferredDrop::Log(self.claim.clone()));
    }
}

impl LogClaim {
    /// The client whose log this is.
    pub fn client(&self) -> DirtyClient {
        self.claim.client
    }

    /// As [`MemoryMap::snapshot_and_clear`], of the log that is claimed: syncs the region,
    /// takes the client's bits of the pages that `bytes` touch, and lets listeners watch these
    /// pages again.
    ///
    /// # Errors
    ///
    /// [`MapError::NotClaimed`] if the claim has not the region's block, and as there.
    pub fn snapshot_and_clear(
        &self,
        region: RegionId,
        bytes: Range<u64>,
    ) -> Result<Harvest, MapError> {
        self.snapshot_and_clear_into(region, bytes, DirtySnapshot::default())
    }

    /// As [`snapshot_and_clear`](Self::snapshot_and_clear), with the buffer of an earlier
    /// snapshot.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear`](Self::snapshot_and_clear).
    pub fn snapshot_and_clear_into(
        &self,
        region: RegionId,
        bytes: Range<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, MapError> {
        let (name, block) = self.map.ram_of(region)?;
        let client = self.claim.client;
        let block = block.ok_or_else(|| MapError::NotRam { name: name.to_string(), client })?;
        let held = self.of(&block)?;
        self.map.harvest(&block, bytes, |pages| held.snapshot_and_clear_into(pages, buffer))
    }

    /// Moves the client's bits of `pages` of a block into a bitmap of the caller's; see
    /// [`DirtyMemory::move_into`](ram_block::DirtyMemory::move_into). Nothing is synced, and
    /// nothing watched again: the caller does both, for all blocks at once and just before it
    /// reads the pages.
    ///
    /// # Errors
    ///
    /// [`MapError::NotClaimed`] if the claim has not the block, also because that has left the
    /// map, and [`MapError::Dirty`].
    pub fn move_into(
        &self,
        block: &Arc<RamBlock>,
        pages: Range<u64>,
        into: &mut [u64],
    ) -> Result<u64, MapError> {
        Ok(self.of(block)?.move_into(pages, into)?)
    }

    /// Takes the client's bits of `pages` of a block run by run; see
    /// [`DirtyMemory::visit_runs`](ram_block::DirtyMemory::visit_runs). Nothing is synced, and
    /// nothing watched again, as with [`move_into`](Self::move_into).
    ///
    /// # Errors
    ///
    /// As [`move_into`](Self::move_into).
    pub fn visit_runs<B>(
        &self,
        block: &Arc<RamBlock>,
        pages: Range<u64>,
        gap: u64,
        visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, MapError> {
        Ok(self.of(block)?.visit_runs(pages, gap, visit)?)
    }

    /// What it has of a block. The map's list is locked for a moment only.
    fn of(&self, block: &Arc<RamBlock>) -> Result<Arc<DirtyClaim>, MapError> {
        let held = self.map.claims().of(self.claim.number, block);
        held.ok_or_else(|| {
            let (client, what) = (self.claim.client, format!("block \"{}\"", block.id()));
            MapError::NotClaimed { client, what }
        })
    }
}

impl MemoryMap {
    /// Switches on the dirty log of one RAM region for `client`, and keeps others from
    /// harvesting it, until the claim is dropped.
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
        let block = block.ok_or_else(|| MapError::NotRam { name: name.to_string(), client })?;
        let claim = Claim { region: Some((region, block)), client, number: 0 };
        let what = format!("\"{name}\"");
        self.claim(claim, what, || self.set_log(region, client, true))
    }

    /// Switches on the dirty log of all RAM for `client`, and keeps others from harvesting
    /// it, until the claim is dropped.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`], and as [`set_global_log`](Self::set_global_log).
    pub fn claim_global_log(self: &Arc<Self>, client: DirtyClient) -> Result<LogClaim, MapError> {
        let claim = Claim { region: None, client, number: 0 };
        self.claim(claim, "all RAM".to_owned(), || self.set_global_log(client, true))
    }

    fn claim(
        self: &Arc<Self>,
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
        Ok(LogClaim { map: self.clone(), claim })
    }

    pub(crate) fn drop_claim(&self, claim: &Claim) {
        let ended = self.claims().end(|other| other.number == claim.number);
        drop(ended); // no longer locked
    }
}
