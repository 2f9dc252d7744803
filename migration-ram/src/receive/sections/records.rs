//! The records of RAM: pages, zero pages, the block list, and channel syncs.

use std::sync::Arc;

use crate::error::ReceiveError;
use crate::receive::blocks::Block;
use crate::receive::decode::{Decoder, EncodedPage};
use crate::receive::sections::state::{Sections, SyncAt};
use crate::wire::format::*;

impl Sections<'_, '_, '_> {
    /// Reads the records of a section of RAM, up to RAM_SAVE_FLAG_EOS.
    pub(super) fn records(&mut self, last: bool) -> Result<(), ReceiveError> {
        loop {
            let at = self.stream.at();
            let record = self.stream.u64("a record of RAM")?;
            let (offset, flags) = (record & !RAM_SAVE_FLAG_MASK, record & RAM_SAVE_FLAG_MASK);
            match flags & !RAM_SAVE_FLAG_CONTINUE {
                RAM_SAVE_FLAG_EOS => {
                    if self.sync_at == SyncAt::Unknown {
                        self.sync_at = SyncAt::SectionEnd;
                    }
                    if self.sync_at == SyncAt::SectionEnd && self.shared.has_channels() {
                        self.shared.sync_all(at, last)?;
                    }
                    return Ok(());
                }
                RAM_SAVE_FLAG_MULTIFD_FLUSH if self.sync_at != SyncAt::SectionEnd => {
                    self.sync_at = SyncAt::Flush;
                    if self.shared.has_channels() {
                        self.shared.sync_all(at, last)?;
                    }
                }
                RAM_SAVE_FLAG_MEM_SIZE => self.block_list(offset)?,
                RAM_SAVE_FLAG_ZERO => self.zero_pages(at, flags, offset)?,
                RAM_SAVE_FLAG_PAGE => {
                    let block = self.page_block(at, flags)?;
                    block.check(at, offset, self.page)?;
                    self.contents(&block, offset)?;
                }
                RAM_SAVE_FLAG_XBZRLE => self.delta(at, flags, offset)?,
                RAM_SAVE_FLAG_COMPRESS_PAGE => self.compressed(at, flags, offset)?,
                found => return Err(ReceiveError::Unsupported { at, what: "RAM record", found }),
            }
        }
    }

    /// Reads a page's contents, and those of pages that follow it.
    fn contents(&mut self, block: &Block, offset: u64) -> Result<(), ReceiveError> {
        // Not with channels: one of them may receive the same pages at the same time.
        if let (Some(memory), false) = (block.memory(), self.shared.has_channels()) {
            let flags = RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE;
            let pages = self.ahead.read(self.stream, memory, offset, self.page, flags)?;
            block.count(pages);
            return Ok(());
        }
        block.contents(self.stream, offset..offset + self.page.bytes(), self.page)
    }

    /// Reads a zero page, and those that follow it.
    fn zero_pages(&mut self, at: u64, flags: u64, offset: u64) -> Result<(), ReceiveError> {
        let block = self.page_block(at, flags)?;
        let fill_at = self.stream.at();
        let fill = self.stream.u8("a page's fill byte")?;
        self.stream.expect("a page's fill byte", fill.into(), 0, fill_at)?;
        block.check(at, offset, self.page)?;
        let page = self.page.bytes();
        // Most zero pages are in long runs: handle those that are buffered together. `room` counts
        // the pages after this one, which was checked.
        let room = (block.len - offset) / page - 1;
        let next = (offset + page) | RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
        let count = zero_run(self.stream.buffered(), next, page, room);
        self.stream.consume(count * ZERO_RECORD);
        let end = offset + page * (1 + count as u64);
        block.zero(offset..end, self.page, &mut self.populated)
    }

    /// Reads an XBZRLE delta of a page.
    fn delta(&mut self, at: u64, flags: u64, offset: u64) -> Result<(), ReceiveError> {
        let block = self.page_block(at, flags)?;
        block.check(at, offset, self.page)?;
        let (at, what) = (self.stream.at(), "a delta's encoding");
        let encoding = self.stream.u8(what)?;
        self.stream.expect(what, encoding.into(), XBZRLE_ENCODING.into(), at)?;
        let len = u64::from(self.stream.u16("a delta's length")?);
        self.encoded(&block, offset, (len, self.page.bytes()), "a delta", Decoder::delta)
    }

    /// Reads a page that is compressed by zlib.
    fn compressed(&mut self, at: u64, flags: u64, offset: u64) -> Result<(), ReceiveError> {
        let block = self.page_block(at, flags)?;
        block.check(at, offset, self.page)?;
        let len = u64::from(self.stream.u32("a compressed page's length")?);
        // Data that cannot be compressed is sent as zlib's stored blocks, with a few bytes each.
        let most = self.page.bytes() + self.page.bytes() / 1024 + 64;
        self.encoded(&block, offset, (len, most), "a compressed page", Decoder::zlib)
    }

    /// Reads a page that is encoded in `len` bytes, `most` at most, and decodes it by `decode`.
    fn encoded(
        &mut self,
        block: &Block,
        offset: u64,
        (len, most): (u64, u64),
        what: &'static str,
        decode: fn(&mut Decoder, EncodedPage<'_>, &[u8]) -> Result<(), ReceiveError>,
    ) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        if len > most {
            return Err(ReceiveError::TooLong { at, what, most });
        }
        let decoder = self.decoder.get_or_insert_with(|| Decoder::new(self.page));
        let len = index(len);
        decode(decoder, EncodedPage { at, block, offset }, self.stream.need(len, what)?)?;
        self.stream.consume(len);
        if let Some(memory) = block.memory() {
            self.ahead.received(memory, offset..offset + self.page.bytes(), self.page)?;
        }
        Ok(())
    }

    /// Reads the block list, whose lengths add up to `total`.
    fn block_list(&mut self, total: u64) -> Result<(), ReceiveError> {
        let mut left = total;
        while left > 0 {
            let at = self.stream.at();
            let id = self.stream.name("a block's id")?;
            let len = self.stream.u64("a block's length")?;
            // The loop ends only if the lengths add up to `total`: refuse a longer one, and 0,
            // which makes no progress.
            if len == 0 || len > left {
                return Err(ReceiveError::BlockLength { at, id, found: len, expected: left });
            }
            self.shared.blocks.announce(at, &id, len)?;
            left -= len;
        }
        Ok(())
    }

    /// The block of a page's record.
    fn page_block(&mut self, at: u64, flags: u64) -> Result<Arc<Block>, ReceiveError> {
        if flags & RAM_SAVE_FLAG_CONTINUE == 0 {
            let at = self.stream.at();
            let id = self.stream.name("a block's id")?;
            self.block = Some(self.shared.blocks.get(at, &id)?);
        }
        self.block.clone().ok_or(ReceiveError::NoBlock { at })
    }
}

/// How many records of zero pages `bytes` begin with, at most `most`. The first must have the word
/// `next`, and each further one a word greater by `page`.
fn zero_run(bytes: &[u8], mut next: u64, page: u64, most: u64) -> usize {
    /// Records that are compared without a branch in between.
    const GROUP: usize = 16;
    let mut differing = |records: &[u8]| {
        let mut bits = 0;
        let mut word = next;
        for record in records.chunks_exact(ZERO_RECORD) {
            let (head, fill) = record.split_at(8);
            let head = <[u8; 8]>::try_from(head).map_or(0, u64::from_be_bytes);
            bits |= (head ^ word) | u64::from(fill[0]);
            word = word.wrapping_add(page);
        }
        if bits == 0 {
            next = word;
        }
        bits != 0
    };
    let most = index(most).min(bytes.len() / ZERO_RECORD);
    let bytes = &bytes[..most * ZERO_RECORD];
    let groups = bytes.chunks_exact(GROUP * ZERO_RECORD);
    let whole = groups.take_while(|group| !differing(group)).count() * GROUP;
    let rest = bytes[whole * ZERO_RECORD..].chunks_exact(ZERO_RECORD);
    whole + rest.take_while(|record| !differing(record)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Runs of any length, a byte of which may be another.
        #[test]
        fn a_run_of_zero_records_ends_where_one_is_another(
            (count, most, tail) in (0..100_usize, 0..120_u64, 0..ZERO_RECORD),
            other in prop::option::of((any::<prop::sample::Index>(), 1..=u8::MAX)),
        ) {
            let flags = RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
            let word = |n: usize| (0x7000 + 0x1000 * n as u64) | flags;
            let record = |n| word(n).to_be_bytes().into_iter().chain([0]);
            let mut bytes: Vec<u8> = (0..=count).flat_map(record).collect();
            bytes.truncate(count * ZERO_RECORD + tail);
            let mut expected = count;
            if let (Some((at, bits)), false) = (other, bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
                expected = expected.min(at / ZERO_RECORD);
            }
            let expected = expected.min(usize::try_from(most).unwrap());
            prop_assert_eq!(zero_run(&bytes, word(0), 0x1000, most), expected);
        }
    }
}
