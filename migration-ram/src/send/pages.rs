//! Selects the next pages of the send bitmaps and encodes them.

use std::ops::Range;
use std::sync::Arc;

use memory_region::GlobalLogClaim;
use ram_block::{PageSize, RamBlock};

use crate::error::SendError;
use crate::pages::holes::Holes;
use crate::pages::send_bitmap::SendBitmap;
use crate::send::multifd::Channels;
use crate::status::stats::RoundStats;
use crate::wire::format::*;
use crate::wire::writer::SendStream;

/// Bytes that are re-armed with one call (KVM_CLEAR_DIRTY_LOG): fewer would cost hardly less.
const CLEAR_BYTES: u64 = 32 << 20;
/// Pages of a word of the send bitmap.
const BITS: u64 = u64::BITS as u64;
/// Bytes of pages after which `part` returns, so that the caller can sync and report.
const BATCH_BYTES: u64 = 1 << 20;
/// Bytes of a block that one lookup of holes covers at most.
const WINDOW: u64 = 4 << 30;

/// A walk over all pending pages.
pub(crate) struct Pages<'a> {
    log: &'a mut GlobalLogClaim,
    pending: Vec<SendBitmap>,
    size: PageSize,
    /// Bytes of the stream's pages.
    page: u64,
    /// The block that is being walked, and the next word of its bitmap.
    cursor: (usize, u64),
    /// Up to this offset in bytes, the walked block's pages are re-armed, or the machine is paused
    /// and no longer writes them.
    rearmed: u64,
    contents: Holes,
    /// The block of the stream's last record: a record of the same block need not name it.
    last_block: Option<Arc<RamBlock>>,
}

impl<'a> Pages<'a> {
    /// All pages of `blocks`; later writes are in `log`.
    pub(crate) fn all(
        log: &'a mut GlobalLogClaim,
        blocks: &[Arc<RamBlock>],
        page: PageSize,
    ) -> Result<Self, SendError> {
        let fits =
            |block: &&Arc<RamBlock>| block.page_size() >= page && page.is_aligned(block.len());
        if let Some(block) = blocks.iter().find(|block| !fits(block)) {
            return Err(SendError::BlockPages {
                block: block.id().to_owned(),
                len: block.len(),
                found: block.page_size().bytes(),
                page: page.bytes(),
            });
        }
        Ok(Self {
            log,
            pending: blocks.iter().cloned().map(SendBitmap::all).collect::<Result<_, _>>()?,
            size: page,
            page: page.bytes(),
            cursor: (0, 0),
            rearmed: 0,
            contents: Holes::new(WINDOW),
            last_block: None,
        })
    }

    /// Bytes of all pending pages.
    pub(crate) fn remaining(&self) -> u64 {
        self.pending.iter().map(|pending| pending.count() * pending.block.page_size().bytes()).sum()
    }

    /// Syncs the log and moves its bits into the send bitmaps; returns how many pages of the stream
    /// are newly pending.
    pub(crate) fn harvest(&mut self) -> Result<u64, SendError> {
        self.log.sync()?;
        // A cached hole may have been filled since; its bit is in the send bitmap now.
        self.contents.clear();
        let mut new = 0;
        for pending in &mut self.pending {
            new += pending.harvest(self.log)? * pending.block.page_size().bytes() / self.page;
        }
        Ok(new)
    }

    /// Begins a walk from the first page on.
    pub(crate) fn rewind(&mut self) {
        self.cursor = (0, 0);
        self.rearmed = 0;
    }

    /// Encodes pages until `stream` is full or `BATCH_BYTES` were encoded; returns whether the
    /// walk is to be continued.
    ///
    /// Re-arms each `CLEAR_BYTES` of memory just before their pages are read, except in the
    /// `last` round, for which the machine is paused.
    pub(crate) fn part(
        &mut self,
        stream: &mut SendStream<'_>,
        channels: &mut Option<Channels>,
        last: bool,
        stats: &mut RoundStats,
    ) -> Result<bool, SendError> {
        let normal = |stats: &RoundStats| stats.pages - stats.zero_pages;
        let enough = normal(stats) + BATCH_BYTES / self.page;
        while let Some(pending) = self.pending.get_mut(self.cursor.0) {
            let Some((word, bits)) = pending.take_word(self.cursor.1) else {
                self.cursor = (self.cursor.0 + 1, 0);
                self.rearmed = 0;
                continue;
            };
            self.cursor.1 = word + 1;
            let block = pending.block.clone();
            let size = block.page_size().bytes();
            let first = word * BITS * size;
            if first >= self.rearmed {
                self.rearmed = block.len();
                if !last {
                    let end = (first - first % CLEAR_BYTES).saturating_add(CLEAR_BYTES);
                    self.rearmed = end.min(block.len());
                    pending.rearm(self.log, first..self.rearmed)?;
                }
            }
            for pages in ram_block::runs(std::iter::once((word, bits))) {
                let bytes = block.page_size().bytes_of(&pages);
                self.run(stream, channels, &block, bytes, stats)?;
            }
            if stream.is_full() || normal(stats) >= enough {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Encodes a run of pages, whose bits of the send bitmap are cleared already.
    fn run(
        &mut self,
        stream: &mut SendStream<'_>,
        channels: &mut Option<Channels>,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
        stats: &mut RoundStats,
    ) -> Result<(), SendError> {
        stats.pages += (bytes.end - bytes.start) / self.page;
        let mut at = bytes.start;
        while at < bytes.end {
            // Look up only re-armed pages: a store that fills a hole beyond them may set no new
            // dirty bit.
            let contents = self.contents.next_below(block, at, self.page, self.rearmed);
            if contents.start > at {
                let end = contents.start.min(bytes.end);
                self.zero_pages(stream, block, at, (end - at) / self.page, stats);
                at = end;
                continue;
            }
            let count = ((contents.end.min(bytes.end) - at) / self.page).min(BITS);
            let zero = block.zero_mask(at, self.size, u32::try_from(count).unwrap_or(0))?;
            for page in 0..count {
                let offset = at + page * self.page;
                if zero >> page & 1 == 1 {
                    self.zero_pages(stream, block, offset, 1, stats);
                } else if let Some(channels) = channels {
                    channels.page(block, offset)?;
                } else {
                    self.record(stream, block, offset, RAM_SAVE_FLAG_PAGE);
                    stream.guest_memory(block, offset..offset + self.page)?;
                }
            }
            at += count * self.page;
        }
        Ok(())
    }

    fn zero_pages(
        &mut self,
        stream: &mut SendStream<'_>,
        block: &Arc<RamBlock>,
        offset: u64,
        count: u64,
        stats: &mut RoundStats,
    ) {
        stats.zero_pages += count;
        let (mut offset, mut count) = (offset, count);
        if !self.is_last(block) {
            self.record(stream, block, offset, RAM_SAVE_FLAG_ZERO);
            stream.u8(0);
            offset += self.page;
            count -= 1;
        }
        stream.zero_records(offset, usize::try_from(count).unwrap_or(0), self.page);
    }

    fn is_last(&self, block: &Arc<RamBlock>) -> bool {
        self.last_block.as_ref().is_some_and(|last| Arc::ptr_eq(last, block))
    }

    /// The head of a page's record.
    fn record(
        &mut self,
        stream: &mut SendStream<'_>,
        block: &Arc<RamBlock>,
        offset: u64,
        flag: u64,
    ) {
        if self.is_last(block) {
            stream.u64(offset | flag | RAM_SAVE_FLAG_CONTINUE);
        } else {
            stream.u64(offset | flag);
            stream.name(block.id());
            self.last_block = Some(block.clone());
        }
    }
}
