//! A machine as a file, and back.
//!
//! Numbers are little-endian and of 64 bits:
//!
//! ```text
//! "RV64SAVE"  version
//! for each block of memory (RAM, frame buffer):
//!     bytes of the block, number of chunks, then for each chunk with a byte that is not zero:
//!         number of the chunk, its 4096 bytes
//! bytes of the rest, and the rest: harts, clock and devices
//! ```

use std::sync::Arc;

use ram_block::{RamBlock, RamBlockError};
use thiserror::Error;

use crate::devices::device::Reader;
use crate::machine::machine::Machine;

const MAGIC: &[u8; 8] = b"RV64SAVE";
const VERSION: u64 = 1;
/// Bytes of a chunk.
const CHUNK: u64 = CHUNK_LEN as u64;
const CHUNK_LEN: usize = 4096;

/// Why a machine cannot be saved or restored.
#[derive(Debug, Error)]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum SaveError {
    /// Something else, or of another version.
    #[error("No saved state of version {VERSION}")]
    NoState,
    /// The state ends early, or has what cannot be.
    #[error("The saved state is damaged")]
    Damaged,
    /// The state of a machine with other memory.
    #[error("The saved \"{id}\" has {found} bytes, the machine's {wanted}")]
    OtherMemory { id: String, found: u64, wanted: u64 },
    /// Memory cannot be accessed.
    #[error(transparent)]
    Ram(#[from] RamBlockError),
}

/// The chunks of a block that are saved, in ascending order.
type Chunks<'a> = Vec<(u64, &'a [u8])>;

impl Machine {
    fn blocks(&self) -> [Arc<RamBlock>; 2] {
        [self.ram.clone(), self.frame_buffer.clone()]
    }

    /// The whole machine. What a hart has reserved is not saved: its conditional store fails in a
    /// machine that was restored, as it does after a trap.
    ///
    /// # Errors
    ///
    /// [`SaveError::Ram`].
    pub fn save(&self) -> Result<Vec<u8>, SaveError> {
        let mut into = MAGIC.to_vec();
        into.extend(VERSION.to_le_bytes());
        for block in self.blocks() {
            into.extend(block.len().to_le_bytes());
            let count_at = into.len();
            into.extend([0; 8]);
            let (mut count, mut bytes) = (0u64, [0; CHUNK_LEN]);
            for chunk in 0..block.len() / CHUNK {
                block.read(chunk * CHUNK, &mut bytes)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    into.extend(chunk.to_le_bytes());
                    into.extend(bytes);
                    count += 1;
                }
            }
            into[count_at..count_at + 8].copy_from_slice(&count.to_le_bytes());
        }
        let rest = self.save_processors();
        into.extend((rest.len() as u64).to_le_bytes());
        into.extend(rest);
        Ok(into)
    }

    /// Makes the machine what it was when `state` was saved. Memory that differs is written, and so
    /// marked for all logs, and for decoded code.
    ///
    /// # Errors
    ///
    /// [`SaveError`]. The machine is as it was if the memory of the state is not that of the
    /// machine; if another part is damaged, it is between both.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), SaveError> {
        let mut from = Reader(state);
        let head = (from.bytes(8), from.number());
        if head != (Some(MAGIC), Some(VERSION)) {
            return Err(SaveError::NoState);
        }
        let blocks = self.blocks();
        let mut contents = Vec::new();
        for block in &blocks {
            let found = from.number().ok_or(SaveError::Damaged)?;
            let (id, wanted) = (block.id().to_owned(), block.len());
            if found != wanted {
                return Err(SaveError::OtherMemory { id, found, wanted });
            }
            contents.push(chunks(&mut from, wanted / CHUNK).ok_or(SaveError::Damaged)?);
        }
        let rest = from.number().and_then(|len| from.bytes(len));
        let rest = rest.filter(|_| from.0.is_empty()).ok_or(SaveError::Damaged)?;
        // What is damaged changes nothing.
        self.restore_processors(rest).ok_or(SaveError::Damaged)?;
        for (block, chunks) in blocks.iter().zip(contents) {
            fill(block, chunks)?;
        }
        Ok(())
    }
}

/// The saved chunks of a block with so many.
fn chunks<'a>(from: &mut Reader<'a>, of: u64) -> Option<Chunks<'a>> {
    let count = from.number().filter(|count| *count <= of)?;
    let mut chunks: Chunks<'a> = Vec::new();
    for _ in 0..count {
        let number = from.number().filter(|number| *number < of)?;
        if chunks.last().is_some_and(|(last, _)| *last >= number) {
            return None;
        }
        chunks.push((number, from.bytes(CHUNK)?));
    }
    Some(chunks)
}

/// Makes a block have these chunks, and zeros.
fn fill(block: &RamBlock, chunks: Chunks<'_>) -> Result<(), RamBlockError> {
    let (zeros, mut bytes) = ([0; CHUNK_LEN], [0; CHUNK_LEN]);
    let mut chunks = chunks.into_iter().peekable();
    for number in 0..block.len() / CHUNK {
        let new = chunks.next_if(|(next, _)| *next == number).map_or(&zeros[..], |(_, new)| new);
        block.read(number * CHUNK, &mut bytes)?;
        if bytes[..] != *new {
            block.write(number * CHUNK, new)?;
        }
    }
    Ok(())
}
