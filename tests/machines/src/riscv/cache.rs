//! Decoded blocks, and how they go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ram_block::{CodeWatch, DirtyError, RamBlock, RamSlice};

use super::decode::{Instruction, decode};
use super::{Stop, fetch};

/// Whether the cache is told of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Blocks go when their page is written.
    Watched,
    /// Blocks stay. Wrong, and kept to show that a test can tell.
    Never,
}

/// Instructions of one page that follow each other.
#[derive(Debug)]
pub(super) struct Block {
    instructions: Vec<Instruction>,
    current: AtomicBool,
}

impl Block {
    pub(super) fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Whether its page has not been written since it was decoded.
    pub(super) fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }
}

/// The blocks of each page, by the address of their first instruction.
type Pages = HashMap<u64, HashMap<u32, Arc<Block>>>;

fn forget(pages: &Mutex<Pages>, page: u64) {
    let blocks = pages.lock().unwrap_or_else(PoisonError::into_inner).remove(&page);
    for block in blocks.into_iter().flat_map(HashMap::into_values) {
        block.current.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    pages: Arc<Mutex<Pages>>,
    watch: Option<CodeWatch>,
    page_bytes: u64,
    decoded: AtomicU64,
}

impl Cache {
    pub(super) fn new(ram: &RamBlock, invalidation: Invalidation) -> Result<Self, DirtyError> {
        let pages = Arc::new(Mutex::new(Pages::new()));
        let watch = match invalidation {
            Invalidation::Watched => {
                let pages = pages.clone();
                Some(ram.dirty().watch_code(move |page| forget(&pages, page))?)
            }
            Invalidation::Never => None,
        };
        let page_bytes = ram.page_size().bytes();
        Ok(Self { pages, watch, page_bytes, decoded: AtomicU64::new(0) })
    }

    pub(super) fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }

    /// The block that begins at `pc`.
    pub(super) fn block(&self, memory: &RamSlice<'_>, pc: u32) -> Result<Arc<Block>, Stop> {
        let page = u64::from(pc) / self.page_bytes;
        let pages = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = pages().get(&page).and_then(|blocks| blocks.get(&pc)) {
            return Ok(block.clone());
        }
        // Watched before it is read.
        let watching = match &self.watch {
            Some(watch) => Some(watch.watch(page..page + 1).map_err(|_| Stop::Fault(pc))?),
            None => None,
        };
        let block = Arc::new(Block {
            instructions: self.decode(memory, pc)?,
            current: AtomicBool::new(true),
        });
        self.decoded.fetch_add(1, Ordering::Relaxed);
        pages().entry(page).or_default().insert(pc, block.clone());
        // A report that came before the insertion found nothing to forget.
        if let Some((watch, watching)) = self.watch.as_ref().zip(watching)
            && !watch.is_current(watching)
        {
            forget(&self.pages, page);
        }
        Ok(block)
    }

    /// Decodes up to a jump or the page's end.
    fn decode(&self, memory: &RamSlice<'_>, pc: u32) -> Result<Vec<Instruction>, Stop> {
        let mut instructions = Vec::new();
        for at in (pc..).step_by(4) {
            // Beyond the first instruction, what cannot be fetched is the next block's.
            let word = match fetch(memory, at) {
                Err(stop) if instructions.is_empty() => return Err(stop),
                Err(_) => break,
                Ok(word) => word,
            };
            let instruction = decode(word);
            instructions.push(instruction);
            let last = u64::from(at) % self.page_bytes == self.page_bytes - 4;
            if last || instruction.ends_block() {
                break;
            }
        }
        Ok(instructions)
    }
}
