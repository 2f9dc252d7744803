//! The send bitmap: the pages that are still to be sent (QEMU: `RAMBlock.bmap`).

use std::ops::Range;
use std::sync::Arc;

use memory_region::{GlobalLogClaim, MapError};
use ram_block::{DirtyClient, DirtyError, PageSet, RamBlock};

use crate::error::SendError;

/// A migration's send bitmap of one block: pages whose dirty bits were harvested from the block
/// and that were not sent yet.
pub(crate) struct SendBitmap {
    pub(crate) block: Arc<RamBlock>,
    pages: PageSet,
    count: u64,
    /// The epoch of the migration's log at the start: if it changes, bits were dropped.
    epoch: u64,
}

impl SendBitmap {
    /// All pages of `block`: its log lacks the writes from before it was switched on.
    pub(crate) fn all(block: Arc<RamBlock>) -> Result<Self, SendError> {
        // Read before the length: a resize after this changes the epoch.
        let epoch = block.dirty().epoch(DirtyClient::MIGRATION);
        let count = block.pages();
        let mut pages = block.dirty().page_set()?;
        pages.insert(0..count);
        Ok(Self { block, pages, count, epoch })
    }

    /// How many pages are pending.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Moves the migration's dirty bits of the block into this bitmap; returns how many pages are
    /// newly pending.
    pub(crate) fn harvest(&mut self, log: &mut GlobalLogClaim) -> Result<u64, SendError> {
        let moved = log.move_to(&self.block, &mut self.pages);
        let new = self.unless_interrupted(moved)?;
        self.count += new;
        Ok(new)
    }

    /// Re-arms the log of `bytes` of the block, whole pages, before they are read.
    pub(crate) fn rearm(
        &self,
        log: &mut GlobalLogClaim,
        bytes: Range<u64>,
    ) -> Result<(), SendError> {
        self.unless_interrupted(log.clear(&self.block, bytes))
    }

    /// The result of a call of the log, unless that has a gap.
    fn unless_interrupted<T>(&self, result: Result<T, MapError>) -> Result<T, SendError> {
        // The log is off, or was off and on again: the block was unmapped, if only for a
        // moment. The bits from before that are lost.
        if self.block.dirty().epoch(DirtyClient::MIGRATION) != self.epoch
            || matches!(
                result,
                Err(MapError::NotLogged { .. } | MapError::Dirty(DirtyError::ClientOff { .. }))
            )
        {
            return Err(SendError::LogInterrupted { block: self.block.id().to_owned() });
        }
        Ok(result?)
    }

    /// Takes the pending pages of the first word from number `from` on that has any: the word's
    /// number and its bits. They are no longer pending before the caller reads them.
    pub(crate) fn take_word(&mut self, from: u64) -> Option<(u64, u64)> {
        let (word, bits) = self.pages.take_word(from)?;
        self.count -= u64::from(bits.count_ones());
        Some((word, bits))
    }
}

#[cfg(test)]
mod tests {
    use memory_region::MemoryMap;

    use super::*;

    #[test]
    fn pages_are_taken_once_and_counted() {
        let page = ram_block::PageSize::host().bytes();
        let block = RamBlock::anonymous("ram", 130 * page).unwrap();
        let memory = MemoryMap::new();
        memory.transaction(|map| map.ram("ram", block.clone())).unwrap();
        let mut log = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
        let mut pending = SendBitmap::all(block.clone()).unwrap();
        let drain = |pending: &mut SendBitmap| {
            let mut words = Vec::new();
            while let Some(word) = pending.take_word(words.last().map_or(0, |(word, _)| word + 1)) {
                words.push(word);
            }
            words
        };
        assert_eq!(pending.count(), 130);
        assert_eq!(drain(&mut pending), [(0, u64::MAX), (1, u64::MAX), (2, 3)]);
        assert_eq!(pending.count(), 0);
        block.dirty().mark(63 * page, 2 * page);
        assert_eq!(pending.harvest(&mut log).unwrap(), 2);
        block.dirty().mark(64 * page, 2 * page);
        assert_eq!(pending.harvest(&mut log).unwrap(), 1);
        assert_eq!(pending.count(), 3);
        assert_eq!(drain(&mut pending), [(0, 1 << 63), (1, 3)]);
        assert_eq!(pending.harvest(&mut log).unwrap(), 0);
    }

    #[test]
    fn a_gap_of_the_log_is_found_when_pages_are_rearmed() {
        let page = ram_block::PageSize::host().bytes();
        let memory = MemoryMap::new();
        let block = RamBlock::anonymous("ram", 8 * page).unwrap();
        let region = memory.transaction(|map| map.ram("ram", block.clone())).unwrap();
        let mut log = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
        let pending = SendBitmap::all(block.clone()).unwrap();
        pending.rearm(&mut log, 0..8 * page).unwrap();
        let wrong = pending.rearm(&mut log, 1..8 * page).unwrap_err();
        assert!(matches!(wrong, SendError::Log(MapError::ByteRange { .. })), "{wrong}");
        let mut is_interrupted = || {
            let result = pending.rearm(&mut log, 0..8 * page);
            matches!(result, Err(SendError::LogInterrupted { block }) if block == "ram")
        };
        memory.transaction(|map| map.remove(region)).unwrap();
        assert!(is_interrupted(), "the block is off the map");
        memory.transaction(|map| map.ram("ram", block.clone())).unwrap();
        assert!(is_interrupted(), "the block was off the map");
    }
}
