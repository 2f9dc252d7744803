//! The receiving side: a parser that trusts nothing.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use ram_block::{PageSize, RamBlock};

use crate::error::ReceiveError;
use crate::format::*;
use crate::page::is_zero;
use crate::reader::StreamReader;

/// What a stream brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The name of the machine that sent it.
    pub machine: String,
    /// Pages of the stream that came with their bytes.
    pub pages: u64,
    /// Pages of the stream that came as zeros.
    pub zero_pages: u64,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// Reads a migration stream from `input` into `blocks`, which are told by their ids.
///
/// The stream carries RAM alone: a section of a device is an error. It announces
/// exactly these blocks, with their lengths. Pages that come as zeros
/// are not written where they are zero already, so memory that nobody touched stays
/// untouched. Returns after the end of the stream, of which nothing more is read; up
/// to 256 KiB may have been taken from `input` beyond it.
///
/// # Errors
///
/// [`ReceiveError`] with the place in the stream. The blocks then hold a part of it,
/// and the machine must not be started.
pub fn receive(input: impl Read, blocks: &[Arc<RamBlock>]) -> Result<Received, ReceiveError> {
    let mut parser = Parser {
        stream: StreamReader::new(input),
        blocks,
        page: default_page_size(),
        buffer: Vec::new(),
        ram_section: None,
        announced: BTreeSet::new(),
        block: None,
        complete: false,
        received: Received::default(),
    };
    parser.run()?;
    Ok(Received { bytes: parser.stream.at(), ..parser.received })
}

struct Parser<'a, R: Read> {
    stream: StreamReader<R>,
    blocks: &'a [Arc<RamBlock>],
    page: PageSize,
    /// One page of the stream.
    buffer: Vec<u8>,
    /// The number of RAM's section, once it has begun.
    ram_section: Option<u32>,
    /// The ids of the blocks that the stream has.
    announced: BTreeSet<String>,
    /// The block of the last record.
    block: Option<Arc<RamBlock>>,
    /// RAM's last section has come.
    complete: bool,
    received: Received,
}

impl<R: Read> Parser<'_, R> {
    fn run(&mut self) -> Result<(), ReceiveError> {
        for (what, expected) in [("the magic number", MAGIC), ("the version", VERSION)] {
            let at = self.stream.at();
            let found = self.stream.u32(what)?;
            self.stream.expect(what, found.into(), expected.into(), at)?;
        }
        let mut part = self.stream.u8("the first part")?;
        if part == CONFIGURATION {
            part = self.configuration()?;
        }
        self.buffer = vec![0; usize::try_from(self.page.bytes()).unwrap_or(0)];
        loop {
            let at = self.stream.at() - 1;
            match part {
                SECTION_START | SECTION_FULL => self.section_start(at)?,
                SECTION_PART | SECTION_END => self.section_part(part == SECTION_END)?,
                COMMAND => self.command(at)?,
                EOF => break,
                found => {
                    return Err(ReceiveError::Unsupported {
                        at,
                        what: "part",
                        found: found.into(),
                    });
                }
            }
            part = self.stream.u8("the next part")?;
        }
        if !self.complete {
            return Err(ReceiveError::Incomplete { at: self.stream.at() });
        }
        let missing = self.blocks.iter().map(|block| block.id());
        let missing: Vec<_> = missing.filter(|id| !self.announced.contains(*id)).collect();
        if !missing.is_empty() {
            let (at, ids) = (self.stream.at(), missing.join(", "));
            return Err(ReceiveError::MissingBlocks { at, ids });
        }
        self.description()
    }

    /// The sender's configuration; returns the kind of the part that follows it.
    fn configuration(&mut self) -> Result<u8, ReceiveError> {
        let len = self.stream.u32("the machine's name")?;
        self.received.machine = self.stream.text(len, MAX_MACHINE_NAME, "the machine's name")?;
        loop {
            let part = self.stream.u8("the part after the configuration")?;
            if part != SUBSECTION {
                return Ok(part);
            }
            let at = self.stream.at();
            let name = self.stream.name("a subsection's name")?;
            self.stream.u32("a subsection's version")?;
            if name != PAGE_BITS {
                return Err(ReceiveError::UnknownSection { at, name });
            }
            let at = self.stream.at();
            let bits = self.stream.u32("the page size")?;
            // Flags share a word with offsets, so pages have 4 KiB at least; no target
            // has more than 64 KiB. A page is what a record of 9 bytes can cost.
            let size = 1u64.checked_shl(bits).filter(|_| (12..=16).contains(&bits));
            self.page = size.and_then(|size| PageSize::new(size).ok()).ok_or({
                ReceiveError::Unsupported { at, what: "page shift", found: bits.into() }
            })?;
        }
    }

    fn section_start(&mut self, at: u64) -> Result<(), ReceiveError> {
        let number = self.stream.u32("a section's number")?;
        let name = self.stream.name("a section's name")?;
        if name != RAM_NAME {
            return Err(ReceiveError::UnknownSection { at, name });
        }
        let at = self.stream.at();
        let instance = self.stream.u32("the instance of RAM")?;
        self.stream.expect("the instance of RAM", instance.into(), RAM_INSTANCE.into(), at)?;
        let version = self.stream.u32("the version of RAM")?;
        self.stream.expect("the version of RAM", version.into(), RAM_VERSION.into(), at + 4)?;
        self.ram_section = Some(number);
        self.records()?;
        self.footer(number)
    }

    fn section_part(&mut self, last: bool) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        let number = self.stream.u32("a section's number")?;
        if self.ram_section != Some(number) {
            return Err(ReceiveError::Unsupported { at, what: "section", found: number.into() });
        }
        self.records()?;
        self.footer(number)?;
        self.complete |= last;
        Ok(())
    }

    fn footer(&mut self, number: u32) -> Result<(), ReceiveError> {
        let at = self.stream.at();
        let found = self.stream.u8("a section's footer")?;
        self.stream.expect("a section's footer", found.into(), FOOTER.into(), at)?;
        let found = self.stream.u32("a footer's number")?;
        self.stream.expect("a footer's number", found.into(), number.into(), at + 1)
    }

    fn command(&mut self, at: u64) -> Result<(), ReceiveError> {
        let command = self.stream.u16("a command")?;
        let len = self.stream.u16("a command's length")?;
        if command != COMMAND_SWITCHOVER_START {
            return Err(ReceiveError::Unsupported { at, what: "command", found: command.into() });
        }
        self.stream.skip(len.into(), "a command")
    }

    /// What follows the end: a description for people, which may be missing.
    fn description(&mut self) -> Result<(), ReceiveError> {
        match self.stream.u8("the description") {
            Ok(VMDESC) => {
                let len = self.stream.u32("the description's length")?;
                self.stream.skip(len.into(), "the description")
            }
            Err(ReceiveError::Truncated { .. }) => Ok(()),
            Ok(found) => {
                let at = self.stream.at() - 1;
                Err(ReceiveError::Unsupported {
                    at,
                    what: "part after the end",
                    found: found.into(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The records of a section of RAM, up to its end mark.
    fn records(&mut self) -> Result<(), ReceiveError> {
        loop {
            let at = self.stream.at();
            let record = self.stream.u64("a record of RAM")?;
            let (offset, flags) = (record & !FLAG_MASK, record & FLAG_MASK);
            match flags & !FLAG_CONTINUE {
                FLAG_EOS => return Ok(()),
                FLAG_MEM_SIZE => self.block_list(offset)?,
                FLAG_ZERO => {
                    let block = self.page_block(at, flags, offset)?;
                    let fill_at = self.stream.at();
                    let fill = self.stream.u8("a page's fill byte")?;
                    self.stream.expect("a page's fill byte", fill.into(), 0, fill_at)?;
                    self.zero_page(&block, offset)?;
                }
                FLAG_PAGE => {
                    let block = self.page_block(at, flags, offset)?;
                    self.stream.bytes(&mut self.buffer, "a page")?;
                    block.write(offset, &self.buffer)?;
                    self.received.pages += 1;
                }
                found => return Err(ReceiveError::Unsupported { at, what: "RAM record", found }),
            }
        }
    }

    fn zero_page(&mut self, block: &RamBlock, offset: u64) -> Result<(), ReceiveError> {
        // Looking at a hole of a memory file would fill it.
        let hole = block.hole_at(offset).is_some_and(|hole| hole.end - offset >= self.page.bytes());
        if !hole {
            block.read(offset, &mut self.buffer)?;
            if !is_zero(&self.buffer) {
                self.buffer.fill(0);
                block.write(offset, &self.buffer)?;
            }
        }
        self.received.zero_pages += 1;
        Ok(())
    }

    /// The announced blocks, whose lengths add up to `total`.
    fn block_list(&mut self, total: u64) -> Result<(), ReceiveError> {
        let mut left = total;
        while left > 0 {
            let at = self.stream.at();
            let block = self.named_block()?;
            let found = self.stream.u64("a block's length")?;
            let expected = block.len();
            // An announced length of more than is left would never come to an end.
            if found != expected || found > left {
                let id = block.id().to_owned();
                return Err(ReceiveError::BlockLength { at, id, found, expected });
            }
            if !self.announced.insert(block.id().to_owned()) {
                return Err(ReceiveError::DuplicateBlock { at, id: block.id().to_owned() });
            }
            left -= found;
        }
        Ok(())
    }

    fn named_block(&mut self) -> Result<Arc<RamBlock>, ReceiveError> {
        let at = self.stream.at();
        let id = self.stream.name("a block's id")?;
        let block = self.blocks.iter().find(|block| block.id() == id);
        block.cloned().ok_or(ReceiveError::UnknownBlock { at, id })
    }

    /// The block of a page's record, which has such a page.
    fn page_block(
        &mut self,
        at: u64,
        flags: u64,
        offset: u64,
    ) -> Result<Arc<RamBlock>, ReceiveError> {
        if flags & FLAG_CONTINUE == 0 {
            self.block = Some(self.named_block()?);
        }
        let block = self.block.clone().ok_or(ReceiveError::NoBlock { at })?;
        let fits = offset.checked_add(self.page.bytes()).is_some_and(|end| end <= block.len());
        if !fits || !self.page.is_aligned(offset) {
            let (id, len) = (block.id().to_owned(), block.len());
            return Err(ReceiveError::NoSuchPage { at, id, offset, len });
        }
        Ok(block)
    }
}
