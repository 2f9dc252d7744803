//! The blocks of a stream, and the memory that their pages are written to.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ram_block::{PageSize, RamBlock};

use crate::error::ReceiveError;
use crate::locks::lock;
use crate::pages::holes::Holes;
use crate::receive::received::BlockInfo;
use crate::wire::reader::StreamReader;

/// Where the pages of a stream's block are written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BlockTarget {
    /// To this block, which must have the length that the stream announces.
    Memory(Arc<RamBlock>),
    /// Nowhere: they are read and dropped.
    Drop,
    /// Nowhere: the stream is refused.
    Refuse,
}

pub(super) type MakeBlock<'a> = Box<dyn FnMut(&str, u64) -> BlockTarget + Send + 'a>;

/// Bytes that one lookup of populated memory covers at most.
const WINDOW: u64 = 64 << 20;

/// A block that the stream has announced or named.
pub(super) struct Block {
    pub(super) id: Arc<str>,
    /// In bytes: the announced length, or that of the memory here.
    pub(super) len: u64,
    /// `None` if its pages are dropped.
    memory: Option<Arc<RamBlock>>,
    announced: bool,
    // Statistics, in `Relaxed` order: no other memory access depends on them.
    pages: AtomicU64,
    zero_pages: AtomicU64,
    delta_pages: AtomicU64,
}

impl Block {
    /// An error if the block has no page at `offset`.
    pub(super) fn check(&self, at: u64, offset: u64, page: PageSize) -> Result<(), ReceiveError> {
        let fits = offset.checked_add(page.bytes()).is_some_and(|end| end <= self.len);
        if fits && page.is_aligned(offset) {
            return Ok(());
        }
        Err(ReceiveError::NoSuchPage { at, id: self.id.to_string(), offset, len: self.len })
    }

    /// Reads the contents of pages into the block; the caller has checked the range.
    pub(super) fn contents(
        &self,
        stream: &mut StreamReader<'_>,
        bytes: Range<u64>,
        page: PageSize,
    ) -> Result<(), ReceiveError> {
        let len = bytes.end - bytes.start;
        self.count(page.count(len));
        match &self.memory {
            Some(memory) => stream.guest_memory(memory, bytes, "a page"),
            None => stream.skip(len, "a page"),
        }
    }

    /// Reads the contents of pages at `offsets`, which the caller has checked, with one list.
    pub(super) fn pages(
        &self,
        stream: &mut StreamReader<'_>,
        offsets: &[u64],
        page: PageSize,
    ) -> Result<(), ReceiveError> {
        self.count(offsets.len() as u64);
        match &self.memory {
            Some(memory) => stream.guest_pages(memory, offsets, page.bytes(), "a page"),
            None => stream.skip(offsets.len() as u64 * page.bytes(), "a page"),
        }
    }

    /// The memory that the block's pages are written to, if they are not dropped.
    pub(super) fn memory(&self) -> Option<&Arc<RamBlock>> {
        self.memory.as_ref()
    }

    /// Counts pages that were received with their contents.
    pub(super) fn count(&self, pages: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Writes a page at `offset`, which the caller has checked.
    pub(super) fn put(&self, offset: u64, page: &[u8]) -> Result<(), ReceiveError> {
        self.count(1);
        self.write(offset, page)
    }

    /// As [`put`](Self::put), for a page that was received as an XBZRLE delta.
    pub(super) fn put_delta(&self, offset: u64, page: &[u8]) -> Result<(), ReceiveError> {
        self.delta_pages.fetch_add(1, Ordering::Relaxed);
        self.write(offset, page)
    }

    fn write(&self, offset: u64, page: &[u8]) -> Result<(), ReceiveError> {
        match &self.memory {
            Some(memory) => Ok(memory.write(offset, page)?),
            None => Ok(()),
        }
    }

    /// Reads the page at `offset`, which the caller has checked; leaves `page` as it is if the
    /// block's pages are dropped.
    pub(super) fn get(&self, offset: u64, page: &mut [u8]) -> Result<(), ReceiveError> {
        match &self.memory {
            Some(memory) => Ok(memory.read(offset, page)?),
            None => Ok(()),
        }
    }

    /// Zeroes pages; the caller has checked the range.
    pub(super) fn zero(
        &self,
        bytes: Range<u64>,
        page: PageSize,
        populated: &mut Populated,
    ) -> Result<(), ReceiveError> {
        let len = bytes.end - bytes.start;
        self.zero_pages.fetch_add(page.count(len), Ordering::Relaxed);
        match &self.memory {
            Some(memory) => populated.zero(memory, bytes, page),
            None => Ok(()),
        }
    }
}

/// Caches where a block is populated: there, zero pages are written only over pages that are not
/// zero, without a system call.
pub(super) struct Populated(Holes);

impl Default for Populated {
    fn default() -> Self {
        Self(Holes::new(WINDOW))
    }
}

impl Populated {
    fn zero(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
        page: PageSize,
    ) -> Result<(), ReceiveError> {
        let known = self.0.next(block, bytes.start, page.bytes());
        // Not populated as far as is cached: the block zeroes it without populating it.
        if bytes.start < known.start || known.end < bytes.end {
            return Ok(block.zero(bytes.start, bytes.end - bytes.start)?);
        }
        let mut at = bytes.start;
        while at < bytes.end {
            let pages = page.count(bytes.end - at).min(64);
            let mut other = !block.zero_mask(at, page, u32::try_from(pages).unwrap_or(0))?;
            if pages < 64 {
                other &= (1 << pages) - 1;
            }
            while other != 0 {
                let offset = at + u64::from(other.trailing_zeros()) * page.bytes();
                block.zero(offset, page.bytes())?;
                other &= other - 1;
            }
            at += pages * page.bytes();
        }
        Ok(())
    }
}

/// All blocks: those of this machine, and those of the stream.
pub(super) struct Blocks<'a> {
    here: Vec<Arc<RamBlock>>,
    named: Mutex<Named>,
    by: Mutex<Option<MakeBlock<'a>>>,
}

/// The stream's blocks, in its order, and their indices by id.
#[derive(Default)]
struct Named {
    blocks: Vec<Arc<Block>>,
    places: HashMap<Arc<str>, usize>,
}

impl Named {
    fn find(&self, id: &str) -> Option<&Arc<Block>> {
        self.blocks.get(*self.places.get(id)?)
    }
}

/// The most blocks of a stream.
const MAX_BLOCKS: usize = 16_384;

impl<'a> Blocks<'a> {
    pub(super) fn new(here: &[Arc<RamBlock>], by: Option<MakeBlock<'a>>) -> Self {
        Self { here: here.to_vec(), named: Mutex::default(), by: Mutex::new(by) }
    }

    /// A block that the stream has announced or named before.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Block>> {
        lock(&self.named).find(id).cloned()
    }

    /// The block of a record; the block list need not have announced it.
    pub(super) fn get(&self, at: u64, id: &str) -> Result<Arc<Block>, ReceiveError> {
        match self.find(id) {
            Some(block) => Ok(block),
            None => self.add(at, id, None),
        }
    }

    /// Adds a block of the block list, of `len` bytes.
    pub(super) fn announce(&self, at: u64, id: &str, len: u64) -> Result<(), ReceiveError> {
        if self.find(id).is_some() {
            return Err(ReceiveError::DuplicateBlock { at, id: id.to_owned() });
        }
        self.add(at, id, Some(len)).map(drop)
    }

    fn add(&self, at: u64, id: &str, len: Option<u64>) -> Result<Arc<Block>, ReceiveError> {
        let unknown = || ReceiveError::UnknownBlock { at, id: id.to_owned() };
        let here = self.here.iter().find(|block| block.id() == id).cloned();
        let target = match here {
            Some(block) => BlockTarget::Memory(block),
            None => match &mut *lock(&self.by) {
                Some(by) => by(id, len.unwrap_or(0)),
                None => BlockTarget::Refuse,
            },
        };
        let (expected, memory) = match target {
            BlockTarget::Refuse => return Err(unknown()),
            // Without an announced length any offset is accepted.
            BlockTarget::Drop => (len.unwrap_or(u64::MAX), None),
            BlockTarget::Memory(memory) => (memory.len(), Some(memory)),
        };
        let found = len.unwrap_or(expected);
        if found != expected {
            return Err(ReceiveError::BlockLength { at, id: id.to_owned(), found, expected });
        }
        let mut named = lock(&self.named);
        if named.blocks.len() >= MAX_BLOCKS {
            return Err(unknown());
        }
        let block = Arc::new(Block {
            id: id.into(),
            len: expected,
            memory,
            announced: len.is_some(),
            pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            delta_pages: AtomicU64::new(0),
        });
        let place = named.blocks.len();
        named.places.insert(block.id.clone(), place);
        named.blocks.push(block.clone());
        Ok(block)
    }

    /// The ids of this machine's blocks that the stream does not have.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = self.here.iter().filter(|block| self.find(block.id()).is_none());
        missing.map(|block| block.id().to_owned()).collect()
    }

    pub(super) fn info(&self) -> Vec<BlockInfo> {
        let info = |block: &Arc<Block>| BlockInfo {
            id: block.id.to_string(),
            len: if block.announced { block.len } else { 0 },
            pages: block.pages.load(Ordering::Relaxed),
            zero_pages: block.zero_pages.load(Ordering::Relaxed),
            delta_pages: block.delta_pages.load(Ordering::Relaxed),
        };
        lock(&self.named).blocks.iter().map(info).collect()
    }
}
