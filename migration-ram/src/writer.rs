//! Encoding RAM as QEMU's stream.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use ram_block::{PageSize, RamBlock};

use crate::error::SendError;
use crate::format::*;
use crate::page::is_zero;

/// What is gathered before it is written, in bytes.
const BUFFER: usize = 1 << 18;

/// The number of RAM's section in the stream; any would do.
const RAM_SECTION: u32 = 2;

pub(crate) struct StreamWriter<'a, W: Write> {
    out: &'a mut W,
    buffer: Vec<u8>,
    /// Bytes that `out` has taken.
    written: u64,
    page: PageSize,
    /// The block of the last record, which the next one need not name.
    last_block: Option<Arc<RamBlock>>,
    /// Bytes of that block that a memory file did not have when this section looked.
    hole: Range<u64>,
}

impl<'a, W: Write> StreamWriter<'a, W> {
    /// Begins a stream with pages of size `page`.
    pub(crate) fn new(out: &'a mut W, machine: &str, page: PageSize) -> Self {
        let buffer = Vec::with_capacity(BUFFER + (1 << 17));
        let mut stream = Self { out, buffer, written: 0, page, last_block: None, hole: 0..0 };
        stream.u32(MAGIC);
        stream.u32(VERSION);
        stream.u8(CONFIGURATION);
        // Names are checked where they are set; this cannot cut one.
        stream.u32(u32::try_from(machine.len()).unwrap_or(0));
        stream.buffer.extend(machine.as_bytes());
        if page.shift() != DEFAULT_PAGE_SHIFT {
            stream.u8(SUBSECTION);
            stream.name(PAGE_BITS);
            stream.u32(1);
            stream.u32(page.shift());
        }
        stream
    }

    fn u8(&mut self, value: u8) {
        self.buffer.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.buffer.extend(value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.buffer.extend(value.to_be_bytes());
    }

    /// A name with its length in one byte; ids have at most 255 (see `RamBlock`).
    fn name(&mut self, name: &str) {
        self.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.buffer.extend(&name.as_bytes()[..name.len().min(255)]);
    }

    /// Bytes of the stream so far, written or not.
    pub(crate) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Announces the blocks.
    pub(crate) fn setup(&mut self, blocks: &[Arc<RamBlock>]) {
        self.u8(SECTION_START);
        self.u32(RAM_SECTION);
        self.name(RAM_NAME);
        self.u32(RAM_INSTANCE);
        self.u32(RAM_VERSION);
        let total: u64 = blocks.iter().map(|block| block.len()).sum();
        self.u64(total | FLAG_MEM_SIZE);
        for block in blocks {
            self.name(block.id());
            self.u64(block.len());
        }
        self.close_section();
    }

    /// Opens the section of a round.
    pub(crate) fn open_section(&mut self, last: bool) {
        self.u8(if last { SECTION_END } else { SECTION_PART });
        self.u32(RAM_SECTION);
        self.hole = 0..0;
    }

    pub(crate) fn close_section(&mut self) {
        self.u64(FLAG_EOS);
        self.u8(FOOTER);
        self.u32(RAM_SECTION);
    }

    /// Reads `len` bytes at `offset` of a block now, and encodes them page by page;
    /// says whether all of them were zero.
    pub(crate) fn pages(
        &mut self,
        block: &Arc<RamBlock>,
        offset: u64,
        len: u64,
    ) -> Result<bool, SendError> {
        let mut all_zero = true;
        let mut at = offset;
        while at < offset + len {
            all_zero &= self.one_page(block, at)?;
            at += self.page.bytes();
        }
        if self.buffer.len() >= BUFFER {
            self.write()?;
        }
        Ok(all_zero)
    }

    /// Whether the page lies in a hole of its memory file, which reading would fill.
    ///
    /// A hole is remembered within a section. Its pages' bits were taken before, so a
    /// store that fills it since sets them again.
    fn is_hole(&mut self, block: &RamBlock, offset: u64) -> bool {
        if !self.hole.contains(&offset) {
            self.hole = block.hole_at(offset).unwrap_or(0..0);
        }
        self.hole.contains(&offset) && self.hole.end - offset >= self.page.bytes()
    }

    fn one_page(&mut self, block: &Arc<RamBlock>, offset: u64) -> Result<bool, SendError> {
        let same = self.last_block.as_ref().is_some_and(|last| Arc::ptr_eq(last, block));
        if !same {
            self.hole = 0..0;
        }
        let hole = self.is_hole(block, offset);
        let flags = if same { FLAG_CONTINUE } else { 0 };
        let record = self.buffer.len();
        self.u64(offset | flags | FLAG_PAGE);
        if !same {
            self.name(block.id());
            self.last_block = Some(block.clone());
        }
        let data = self.buffer.len();
        let size = usize::try_from(self.page.bytes()).unwrap_or(0);
        if !hole {
            self.buffer.resize(data + size, 0);
            block.read(offset, &mut self.buffer[data..])?;
        }
        let zero = is_zero(&self.buffer[data..]);
        if zero {
            let head = (offset | flags | FLAG_ZERO).to_be_bytes();
            self.buffer[record..record + 8].copy_from_slice(&head);
            self.buffer.truncate(data);
            self.u8(0);
        }
        Ok(zero)
    }

    /// Writes what is gathered.
    fn write(&mut self) -> Result<(), SendError> {
        let result = self.out.write_all(&self.buffer);
        result.map_err(|source| SendError::Write { sent: self.written, source })?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), SendError> {
        self.write()?;
        self.out.flush().map_err(|source| SendError::Write { sent: self.written, source })
    }

    /// Ends the stream. The empty description is sent because a receiver on an open
    /// socket waits for one.
    pub(crate) fn finish(mut self) -> Result<u64, SendError> {
        self.u8(EOF);
        self.u8(VMDESC);
        self.u32(0);
        self.flush()?;
        Ok(self.written)
    }
}
