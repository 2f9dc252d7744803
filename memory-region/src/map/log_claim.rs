//! The claim of a client's log of one region: the log is on as long as its claim exists, and only
//! the claim takes its bits.

use std::fmt;
use std::ops::{ControlFlow, Range, RangeBounds};
use std::sync::Arc;

use ram_block::{Claimant, DirtyClient, DirtySnapshot, Harvest, PageSet, RamBlock};

use crate::error::MapError;
use crate::map::global_log_claim::GlobalLogClaim;
use crate::map::memory_map::MemoryMap;
use crate::region_id::RegionId;

/// A client's dirty log of one region's memory. It is on as long as this exists, and only this
/// takes its bits.
///
/// Each bit can be taken once, so each client's log of a block has one claim, whichever region or
/// map shows the block: a second one, by a second screen of the same display, is an error.
///
/// Ranges that it is given are *bytes* of its region, which are those of the block: those of
/// [`DirtyClaim`](ram_block::DirtyClaim), of the block alone, are pages. Runs and sets that it
/// hands out are pages, too: [`PageSize::bytes_of`](ram_block::PageSize::bytes_of) gives their
/// bytes.
///
/// The first harvest may report pages that were not written: an accelerator may report *all* pages
/// first, so that starting the log costs nothing, as KVM does with manual protection
/// (KVM_DIRTY_LOG_INITIALLY_SET, the default of `kvm-accel` where KVM has it). A client that wants
/// exactly the pages that are written from now on needs `KvmConfig::initially_set` to be false.
///
/// Dropping it stops the log; within an update's closure or by a listener, after that update. If a
/// listener refuses that, the log goes on, and its client stays taken, until a later change of the
/// map or the next claim tries again. To claim the same log anew, drop the former claim first.
///
/// ```
/// use memory_region::{MapError, MemoryMap};
/// use ram_block::{DirtyClient, RamBlock};
///
/// let memory = MemoryMap::new();
/// let ram = memory.transaction(|map| map.ram("ram", RamBlock::anonymous("pc.ram", 1 << 20)?))?;
/// let mut vga = memory.claim_log(ram, DirtyClient::VGA)?;
/// let mut reset = memory.claim_log(ram, "reset")?;
/// memory.ram_block(ram)?.write(0x3000, b"guest")?;
/// assert!(vga.snapshot_and_clear(0..1 << 20)?.commit().is_dirty(3));
/// assert!(reset.snapshot_and_clear(0..1 << 20)?.commit().is_dirty(3));
/// assert!(matches!(memory.claim_log(ram, DirtyClient::VGA), Err(MapError::Claimed { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the log is stopped when this is dropped"]
pub struct LogClaim {
    /// A log of this region's block alone.
    log: GlobalLogClaim,
    block: Arc<RamBlock>,
}

impl MemoryMap {
    /// Claims a client's dirty log of one RAM region and starts it: everything written from the
    /// return of this call on is logged, and only the claim takes it.
    ///
    /// The claimant is a [`DirtyClient`], or a name, for which the first number is chosen that is
    /// free and not built in.
    ///
    /// **Only listeners of this map log for it.** If the accelerator of the guests follows another
    /// map that shows the block, what they write is missed, and nothing says so: claim the log at
    /// the accelerator's map.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`], [`MapError::NotRam`], [`MapError::UnknownRegion`],
    /// [`MapError::Dirty`] for the code client, for a name if no number is free, or without memory
    /// for a bitmap, [`MapError::Refused`], [`MapError::Reentrant`].
    pub fn claim_log(
        self: &Arc<Self>,
        region: RegionId,
        claimant: impl Into<Claimant>,
    ) -> Result<LogClaim, MapError> {
        let log = self.start_log(Some(region), &claimant.into())?;
        let block = self.ram_block(region)?;
        Ok(LogClaim { log, block })
    }
}

impl LogClaim {
    /// The client whose log this is.
    pub fn client(&self) -> DirtyClient {
        self.log.client()
    }

    /// The block that is logged.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Syncs the block, takes the client's bits of exactly the pages that `bytes` of it span, and
    /// re-arms the log of these pages, so that the next write to them is reported again. `..` is
    /// the whole block.
    ///
    /// Read the pages after this call, not before: what is written later is in the next harvest.
    ///
    /// # Errors
    ///
    /// [`MapError::Sync`], [`MapError::NotLogged`] if the region was removed,
    /// [`MapError::ByteRange`] if the block has no such bytes, and [`MapError::Dirty`] if the block
    /// is being made shorter, or the region is being removed.
    pub fn snapshot_and_clear(
        &mut self,
        bytes: impl RangeBounds<u64>,
    ) -> Result<Harvest, MapError> {
        self.snapshot_and_clear_into(bytes, DirtySnapshot::default())
    }

    /// As [`snapshot_and_clear`](Self::snapshot_and_clear), with the buffer of an earlier snapshot.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear`](Self::snapshot_and_clear).
    pub fn snapshot_and_clear_into(
        &mut self,
        bytes: impl RangeBounds<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, MapError> {
        self.log.map.sync_block(&self.block)?;
        self.log.take_snapshot(&self.block, &bytes, buffer)
    }

    /// Syncs the block, and takes the client's bits run by run, as
    /// [`GlobalLogClaim::visit_runs`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn visit_runs<B>(
        &mut self,
        gap: u64,
        visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, MapError> {
        self.log.map.sync_block(&self.block)?;
        self.log.visit_runs(&self.block, gap, visit)
    }

    /// Syncs the block, and moves the client's bits into a set of the caller's.
    ///
    /// **Does not re-arm the log**, unlike [`snapshot_and_clear`](Self::snapshot_and_clear): until
    /// [`clear`](Self::clear) does, each sync may report the same pages again. It is for a client
    /// that reads the pages much later; see [`GlobalLogClaim::move_to`].
    ///
    /// # Errors
    ///
    /// As there, and [`MapError::Sync`].
    pub fn move_to(&mut self, into: &mut PageSet) -> Result<u64, MapError> {
        self.log.map.sync_block(&self.block)?;
        self.log.move_to(&self.block, into)
    }

    /// As [`move_to`](Self::move_to), into a bitmap of the caller's, and **without re-arming the
    /// log**, too; see [`DirtyClaim::move_into`](ram_block::DirtyClaim::move_into).
    ///
    /// # Errors
    ///
    /// As [`move_to`](Self::move_to).
    pub fn move_into(&mut self, into: &mut [u64]) -> Result<u64, MapError> {
        self.log.map.sync_block(&self.block)?;
        self.log.move_into(&self.block, into)
    }

    /// Re-arms the log of `bytes` of the block, whole pages whose bits were
    /// [moved](Self::move_to) before. Call it before the pages are read.
    ///
    /// # Errors
    ///
    /// As [`GlobalLogClaim::clear`].
    pub fn clear(&mut self, bytes: impl RangeBounds<u64>) -> Result<(), MapError> {
        self.log.clear(&self.block, bytes)
    }
}

impl fmt::Debug for LogClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, block) = (self.client(), self.block.id());
        f.debug_struct("LogClaim").field("client", &client).field("block", &block).finish()
    }
}
