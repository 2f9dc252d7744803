//! The claim of a client's log of all RAM.

use std::fmt;
use std::ops::{Bound, ControlFlow, Range, RangeBounds};
use std::sync::Arc;

use ram_block::{Claimant, DirtyClient, DirtySnapshot, Harvest, PageSet, RamBlock};

use crate::error::MapError;
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;
use crate::tree::log::Log;

/// The most pages that are re-armed with one call.
const CLEAR_PAGES: u64 = 1 << 18;
/// How often a number is chosen for a name. Each try that fails is a claim of somebody else's: two
/// threads that claim and drop names without end make one fail eight times in a row.
const MAX_TRIES: usize = 64;

/// A client's dirty log of all RAM, also of blocks that join the map later, all of whose pages are
/// dirty at first. It is on as long as this exists, and only this takes its bits.
///
/// As a [`LogClaim`](crate::LogClaim), for a client that looks at all blocks at once: it
/// [syncs](Self::sync) them all, then takes their bits block by block. It loses the bits of blocks
/// that leave the map. Ranges that it is given are bytes of a block, runs and sets that it hands
/// out are pages of it.
///
/// ```
/// use std::ops::ControlFlow;
/// use memory_region::MemoryMap;
/// use ram_block::{DirtyClient, RamBlock};
///
/// let memory = MemoryMap::new();
/// memory.transaction(|map| map.ram("ram", RamBlock::anonymous("pc.ram", 1 << 20)?))?;
/// let mut log = memory.claim_global_log(DirtyClient::MIGRATION)?;
/// memory.ram_blocks()[0].write(0x3000, b"guest")?;
/// log.sync()?;
/// let mut dirty = 0;
/// for block in memory.ram_blocks() {
///     let _ = log.visit_runs(&block, 0, |pages| {
///         dirty += pages.end - pages.start; // read them: they are re-armed
///         ControlFlow::<()>::Continue(())
///     })?;
/// }
/// assert_eq!(dirty, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the log is stopped when this is dropped"]
pub struct GlobalLogClaim {
    pub(super) map: Arc<MemoryMap>,
    log: Arc<Log>,
}

impl MemoryMap {
    /// Claims a client's dirty log of all RAM, present and future, and starts it.
    ///
    /// **Only listeners of this map log for it**, as for [`claim_log`](Self::claim_log): what
    /// guests write through an accelerator that follows another map of the same blocks is missed.
    ///
    /// # Errors
    ///
    /// As [`claim_log`](Self::claim_log).
    pub fn claim_global_log(
        self: &Arc<Self>,
        claimant: impl Into<Claimant>,
    ) -> Result<GlobalLogClaim, MapError> {
        self.start_log(None, &claimant.into())
    }

    pub(super) fn start_log(
        self: &Arc<Self>,
        region: Option<RegionId>,
        claimant: &Claimant,
    ) -> Result<GlobalLogClaim, MapError> {
        self.stop_refused_logs();
        let mut tries = 0;
        loop {
            tries += 1;
            match self.transaction(|map| map.start_log(region, claimant)) {
                Ok(log) => return Ok(GlobalLogClaim { map: self.clone(), log }),
                // Somebody claimed, at the block or in another map, the number that was free.
                Err(MapError::Claimed { .. })
                    if claimant.client().is_none() && tries < MAX_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl GlobalLogClaim {
    /// The client whose log this is.
    pub fn client(&self) -> DirtyClient {
        self.log.client
    }

    /// Merges what accelerators and other listeners have logged into the blocks; as
    /// [`MemoryMap::sync_all_dirty_logs`].
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`].
    pub fn sync(&self) -> Result<(), MapError> {
        self.map.sync_all_dirty_logs()
    }

    /// Takes the client's bits of exactly the pages that `bytes` of a block span, after a
    /// [`sync`](Self::sync), and re-arms the log of these pages. `..` is the whole block. Read the
    /// pages after this call, not before.
    ///
    /// # Errors
    ///
    /// As [`LogClaim::snapshot_and_clear`](crate::LogClaim::snapshot_and_clear).
    pub fn snapshot_and_clear(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: impl RangeBounds<u64>,
    ) -> Result<Harvest, MapError> {
        self.take_snapshot(block, &bytes, DirtySnapshot::default())
    }

    pub(super) fn take_snapshot(
        &self,
        block: &Arc<RamBlock>,
        bytes: &impl RangeBounds<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, MapError> {
        let claim = self.log.of(block)?;
        let bytes = bytes_within(block, bytes)?;
        let size = block.page_size();
        let pages = size.pages_spanned(bytes.start, bytes.end - bytes.start);
        let harvest = claim.snapshot_and_clear_into(pages.clone(), buffer)?;
        // An error gives the bits back.
        self.map.log_clear(block, size.bytes_of(&pages))?;
        Ok(harvest)
    }

    /// Takes the client's bits of a block run by run, after a [`sync`](Self::sync): re-arms the log
    /// of each run of dirty pages and calls `visit`, which may read the pages. Runs with at most
    /// `gap` clean pages between them are one. If `visit` breaks, the runs that it has not seen
    /// stay in the log; see [`DirtyClaim::visit_runs`](ram_block::DirtyClaim::visit_runs).
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`], [`MapError::NotLogged`] if the block is not in the map. Runs that
    /// `visit` has not seen stay in the log.
    pub fn visit_runs<B>(
        &mut self,
        block: &Arc<RamBlock>,
        gap: u64,
        mut visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, MapError> {
        let claim = self.log.of(block)?;
        let visited = claim.visit_runs(0..block.pages(), gap, |pages| {
            if let Err(error) = self.clear_in_parts(block, &pages) {
                // The break says that this run was dealt with.
                claim.give_back(&pages);
                return ControlFlow::Break(Err(error));
            }
            visit(pages).map_break(Ok)
        })?;
        match visited {
            ControlFlow::Continue(()) => Ok(ControlFlow::Continue(())),
            ControlFlow::Break(broken) => broken.map(ControlFlow::Break),
        }
    }

    /// Re-arms the log of `pages` so that other threads get the accelerator's locks in between.
    fn clear_in_parts(&self, block: &Arc<RamBlock>, pages: &Range<u64>) -> Result<(), MapError> {
        let mut rest = pages.clone();
        while !rest.is_empty() {
            let part = rest.start..rest.end.min(rest.start.saturating_add(CLEAR_PAGES));
            self.map.log_clear(block, block.page_size().bytes_of(&part))?;
            rest.start = part.end;
        }
        Ok(())
    }

    /// Moves the client's bits of a block into `into`, a set of the caller's, after a
    /// [`sync`](Self::sync); see [`DirtyClaim::move_to`](ram_block::DirtyClaim::move_to).
    ///
    /// **Does not re-arm the log**, unlike [`snapshot_and_clear`](Self::snapshot_and_clear) and
    /// [`visit_runs`](Self::visit_runs): until [`clear`](Self::clear) does, an accelerator with
    /// manual protection reports the same pages again with each sync, whether they were written or
    /// not. This is for a client that reads the pages much later, as a migration does. A page that
    /// is re-armed at once costs the guest a fault and is reported a second time if it is written
    /// before it is read, though a read shows both writes. Clear each part just before you read it.
    ///
    /// # Errors
    ///
    /// [`MapError::NotLogged`] if the block is not in the map, and [`MapError::Dirty`] if `into` is
    /// too short.
    pub fn move_to(&mut self, block: &Arc<RamBlock>, into: &mut PageSet) -> Result<u64, MapError> {
        Ok(self.log.of(block)?.move_to(0..block.pages(), into)?)
    }

    /// As [`move_to`](Self::move_to), into a bitmap of the caller's, and **without re-arming the
    /// log**, too; see [`DirtyClaim::move_into`](ram_block::DirtyClaim::move_into).
    ///
    /// # Errors
    ///
    /// As [`move_to`](Self::move_to).
    pub fn move_into(&mut self, block: &Arc<RamBlock>, into: &mut [u64]) -> Result<u64, MapError> {
        Ok(self.log.of(block)?.move_into(0..block.pages(), into)?)
    }

    /// Writes each of `data` at its offset in a block, in bytes, as the client whose log this is:
    /// marks the pages for every other client, and leaves this log as it is. See
    /// [`RamBlock::write_by`].
    ///
    /// # Errors
    ///
    /// [`MapError::NotLogged`] if the block is not in the map, [`MapError::Block`] if it has no
    /// such bytes: what comes before that is written.
    pub fn write<'a>(
        &mut self,
        block: &Arc<RamBlock>,
        data: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), MapError> {
        let claim = self.log.of(block)?;
        let write = |(offset, data): (u64, &[u8])| block.write_by(&claim, offset, data);
        Ok(data.into_iter().try_for_each(write)?)
    }

    /// Re-arms the log of `bytes` of a block, whole pages whose bits were [moved](Self::move_to)
    /// before: the next write to each page is reported again. Call it before the pages are read.
    ///
    /// # Errors
    ///
    /// [`MapError::NotLogged`] if the block is not in the map, [`MapError::ByteRange`] if it has no
    /// such bytes or they are not whole pages, [`MapError::Sync`].
    pub fn clear(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: impl RangeBounds<u64>,
    ) -> Result<(), MapError> {
        self.log.of(block)?;
        let bytes = bytes_within(block, &bytes)?;
        let size = block.page_size();
        if ![bytes.start, bytes.end].into_iter().all(|offset| size.is_aligned(offset)) {
            return Err(no_range(block, &bytes, "not whole pages"));
        }
        self.map.log_clear(block, bytes)
    }
}

/// The bytes of the block that are meant, if it has them.
fn bytes_within(block: &RamBlock, bytes: &impl RangeBounds<u64>) -> Result<Range<u64>, MapError> {
    let start = match bytes.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match bytes.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => block.len(),
    };
    let bytes = start..end;
    if start > end {
        return Err(no_range(block, &bytes, "the end is before the start"));
    }
    if end > block.len() {
        return Err(no_range(block, &bytes, "past the end of the block"));
    }
    Ok(bytes)
}

fn no_range(block: &RamBlock, bytes: &Range<u64>, reason: &'static str) -> MapError {
    let Range { start, end } = *bytes;
    MapError::ByteRange { block: block.id().to_owned(), start, end, len: block.len(), reason }
}

impl Drop for GlobalLogClaim {
    fn drop(&mut self) {
        self.map.stop_log(self.log.clone());
    }
}

impl fmt::Debug for GlobalLogClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalLogClaim").field("client", &self.client()).finish()
    }
}
