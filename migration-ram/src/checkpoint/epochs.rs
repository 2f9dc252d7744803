//! Epochs: what was written from one moment to the next, dealt with or given back.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memory_region::{GlobalLogClaim, MapError, MemoryMap};
use ram_block::{PageSet, RamBlock, runs};

use crate::checkpoint::error::CheckpointError;

/// A series of epochs of all RAM: each has the pages that were written since the last one that was
/// committed. The first has all pages.
///
/// Any number of series, of incremental backups, fuzzers and mirrors, go on beside each other, and
/// beside migrations and displays: each has its own bits, and begins, commits and aborts its epochs
/// when it likes.
///
/// ```
/// use memory_region::MemoryMap;
/// use migration_ram::DirtyEpochs;
/// use ram_block::RamBlock;
///
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("pc.ram", 16 << 20)?;
/// memory.transaction(|map| map.ram("ram", ram.clone()))?;
///
/// let mut backup = DirtyEpochs::new(&memory, "backup")?;
/// let full = backup.begin()?; // the machine is paused
/// assert_eq!(full.pages(), ram.pages());
/// full.commit(); // the pages were saved
///
/// ram.write(0x5000, b"the machine runs")?;
/// drop(backup.begin()?); // saving them failed: the epoch is aborted
/// let incremental = backup.begin()?;
/// let runs = incremental.runs().map(|(block, pages)| (block.id(), pages));
/// assert!(runs.eq([("pc.ram", 5..6)]));
/// incremental.commit();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DirtyEpochs {
    map: Arc<MemoryMap>,
    log: GlobalLogClaim,
    /// What was taken from the log, and is in no epoch that was committed.
    pending: Vec<Pending>,
}

struct Pending {
    block: Arc<RamBlock>,
    pages: PageSet,
    /// How often the log of the block was interrupted, or its length changed.
    epoch: u64,
}

impl DirtyEpochs {
    /// Starts a series, whose log of all RAM goes by `name`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Map`], [`CheckpointError::NoMemory`].
    pub fn new(memory: &Arc<MemoryMap>, name: &str) -> Result<Self, CheckpointError> {
        let log = memory.claim_global_log(name)?;
        let mut series = Self { map: memory.clone(), log, pending: Vec::new() };
        series.follow_blocks()?;
        Ok(series)
    }

    /// Drops what belongs to blocks that are gone. Of those that are new, or whose log was
    /// interrupted, all pages are pending.
    fn follow_blocks(&mut self) -> Result<(), CheckpointError> {
        let (client, blocks) = (self.log.client(), self.map.ram_blocks());
        self.pending.retain(|pending| {
            let is_same = |block: &Arc<RamBlock>| Arc::ptr_eq(block, &pending.block);
            blocks.iter().any(is_same) && pending.block.dirty().epoch(client) == pending.epoch
        });
        for block in blocks {
            let is_known = |pending: &Pending| Arc::ptr_eq(&block, &pending.block);
            if !self.pending.iter().any(is_known) {
                // Read before the length: a change in between is seen the next time.
                let epoch = block.dirty().epoch(client);
                let set = block.dirty().page_set();
                let mut pages = set.map_err(|_| CheckpointError::NoMemory { used: 0 })?;
                pages.insert(0..block.pages());
                self.pending.push(Pending { block, pages, epoch });
            }
        }
        Ok(())
    }

    /// Begins an epoch, with all pages that were written since the last one that was committed:
    /// read them after this call. Pages that are written after it are in the next one.
    ///
    /// The machine is paused if the epoch is to be one instant: until its pages were read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Map`], [`CheckpointError::NoMemory`]. The pages are in the next epoch.
    pub fn begin(&mut self) -> Result<DirtyEpoch<'_>, CheckpointError> {
        self.follow_blocks()?;
        self.log.sync()?;
        for pending in &mut self.pending {
            match self.log.move_to(&pending.block, &mut pending.pages) {
                // It has left the map just now: so have its pages.
                Ok(_) | Err(MapError::NotLogged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut taken = Vec::with_capacity(self.pending.len());
        for Pending { block, pages, .. } in &mut self.pending {
            taken.push(Taken { block: block.clone(), words: pages.drain_words().collect() });
        }
        // From here on an error gives the pages back.
        let mut epoch = DirtyEpoch { series: self, taken };
        epoch.re_arm()?;
        Ok(epoch)
    }
}

/// The pages of one epoch. Dropping it aborts it: they are in the next one.
#[must_use = "an epoch that is dropped is aborted"]
pub struct DirtyEpoch<'a> {
    series: &'a mut DirtyEpochs,
    taken: Vec<Taken>,
}

/// The words of a block's pages.
struct Taken {
    block: Arc<RamBlock>,
    words: Vec<(u64, u64)>,
}

impl DirtyEpoch<'_> {
    fn re_arm(&mut self) -> Result<(), CheckpointError> {
        for Taken { block, .. } in self.taken.iter().filter(|taken| !taken.words.is_empty()) {
            match self.series.log.clear(block, 0..block.len()) {
                Ok(()) | Err(MapError::NotLogged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        let words = self.taken.iter().flat_map(|taken| &taken.words);
        words.map(|(_, bits)| u64::from(bits.count_ones())).sum()
    }

    /// Runs of pages, by block and in ascending order in each.
    pub fn runs(&self) -> impl Iterator<Item = (&Arc<RamBlock>, Range<u64>)> {
        self.taken
            .iter()
            .flat_map(|taken| runs(taken.words.iter().copied()).map(|pages| (&taken.block, pages)))
    }

    /// Ends the epoch: its pages were dealt with.
    pub fn commit(mut self) {
        self.taken.clear();
    }
}

impl Drop for DirtyEpoch<'_> {
    fn drop(&mut self) {
        for Taken { block, words } in &self.taken {
            let pending = &mut self.series.pending;
            let known = pending.iter_mut().find(|pending| Arc::ptr_eq(&pending.block, block));
            if let Some(Pending { pages, .. }) = known {
                runs(words.iter().copied()).for_each(|run| pages.insert(run));
            }
        }
    }
}

impl fmt::Debug for DirtyEpochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyEpochs").field("log", &self.log).finish_non_exhaustive()
    }
}

impl fmt::Debug for DirtyEpoch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyEpoch").field("pages", &self.pages()).finish_non_exhaustive()
    }
}
