//! Lists of memory to be filled.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::io::copy::{BUFFER, copy_in};
use crate::io::error::TransferError;
use crate::io::segments::{Bytes, Segment, Segments};
use crate::page::index;

impl Bytes for &mut [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn cut(&mut self, count: u64) {
        *self = &mut std::mem::take(self)[index(count)..];
    }
}

/// Segments to be filled in order: bytes, and ranges of guest memory, whose pages are marked
/// for every client that is on as they are filled.
///
/// What has been filled is removed from the list, so that the next call continues behind it; a list
/// that is filled entirely is empty, and can be used again without allocating. There is an example
/// at [`SendList`](crate::SendList).
#[derive(Default)]
pub struct ReceiveList<'a> {
    pub(super) segments: Segments<&'a mut [u8]>,
    /// Bytes that came from a `Read` and are not distributed yet.
    buffer: Vec<u8>,
}

impl<'a> ReceiveList<'a> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes everything; what the list has allocated is kept.
    pub fn clear(&mut self) {
        self.segments.clear();
    }

    /// Adds bytes.
    pub fn push_bytes(&mut self, bytes: &'a mut [u8]) {
        self.segments.push_bytes(bytes);
    }

    /// Adds the bytes `range` of a block. Extends the segment before, if they follow it.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is added then.
    pub fn push_memory(
        &mut self,
        block: &Arc<RamBlock>,
        range: Range<u64>,
    ) -> Result<(), RamBlockError> {
        self.segments.push_memory(block, range)
    }

    /// Bytes that are not filled yet.
    pub fn len(&self) -> u64 {
        self.segments.len()
    }

    /// Whether all is filled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments that are not filled yet, the first perhaps in part.
    pub fn segments(&self) -> usize {
        self.segments.rest().len()
    }

    /// Reads from any `Read` until everything is filled, and not a byte more; guest memory is
    /// filled through a buffer of 256 KiB.
    ///
    /// # Errors
    ///
    /// [`TransferError`], with the number of bytes that were read; segments that were not filled
    /// stay in the list. If the file of a block was truncated, the missing part is
    /// [`TransferError::MemoryGone`], unless the kernel refuses `process_vm_writev`: then it is a
    /// bus error.
    pub fn read_from(&mut self, input: &mut dyn Read) -> Result<(), TransferError> {
        let mut done = 0;
        while !self.is_empty() {
            match self.read_some_from(input) {
                Ok(0) => return Err(TransferError::UnexpectedEof { done, missing: self.len() }),
                Ok(count) => done += count as u64,
                Err(error) => return Err(error.after(done)),
            }
        }
        Ok(())
    }

    /// Reads once from any `Read`, up to 256 KiB; returns how many bytes it got, 0 at its end.
    ///
    /// # Errors
    ///
    /// As [`read_from`](Self::read_from).
    pub fn read_some_from(&mut self, input: &mut dyn Read) -> Result<usize, TransferError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let some = BUFFER.min(usize::try_from(self.len()).unwrap_or(BUFFER));
        buffer.resize(buffer.len().max(some), 0);
        let count = loop {
            match input.read(&mut buffer[..some]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count,
            }
        };
        let result = match count {
            Ok(count) => {
                let count = count.min(some);
                self.distribute(&buffer[..count], &mut 0).map(|()| count)
            }
            Err(source) => Err(TransferError::Io { done: 0, source }),
        };
        self.buffer = buffer;
        result
    }

    /// Copies `bytes` to the first segments.
    fn distribute(&mut self, mut bytes: &[u8], done: &mut u64) -> Result<(), TransferError> {
        while let (Some(first), false) = (self.segments.rest_mut().first_mut(), bytes.is_empty()) {
            let (some, rest) = bytes.split_at(bytes.len().min(index(first.len())));
            match first {
                Segment::Bytes(target) => target[..some.len()].copy_from_slice(some),
                Segment::Memory { block, range } => {
                    if let Err(offset) = copy_in(block, range.start, some) {
                        let (id, count) = (block.id().to_owned(), offset - range.start);
                        self.segments.advance(count);
                        *done += count;
                        return Err(TransferError::MemoryGone { done: *done, id, offset });
                    }
                }
            }
            bytes = rest;
            *done += some.len() as u64;
            self.segments.advance(some.len() as u64);
        }
        Ok(())
    }
}

impl fmt::Debug for ReceiveList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveList")
            .field("len", &self.len())
            .field("segments", &self.segments())
            .finish()
    }
}
