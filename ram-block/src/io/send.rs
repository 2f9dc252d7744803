//! Lists of memory to be written.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::io::copy::{BUFFER, copy_out};
use crate::io::error::TransferError;
use crate::io::segments::{Bytes, Segment, Segments};
use crate::page::index;

/// Bytes to be written.
pub(super) enum Source<'a> {
    Lent(&'a [u8]),
    /// A range of the list's own bytes.
    Copied(Range<usize>),
}

impl Source<'_> {
    pub(super) fn of<'b>(&'b self, copied: &'b [u8]) -> &'b [u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Copied(range) => &copied[range.clone()],
        }
    }
}

impl Bytes for Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Lent(bytes) => bytes.len() as u64,
            Self::Copied(range) => range.len() as u64,
        }
    }

    fn cut(&mut self, count: u64) {
        match self {
            Self::Lent(bytes) => *bytes = &bytes[index(count)..],
            Self::Copied(range) => range.start += index(count),
        }
    }
}

/// Segments to be written in order: bytes, and ranges of guest memory, which are read when
/// they are written, not before.
///
/// What has been written is removed from the list, so that after an error it holds the rest; a list
/// that is written entirely is empty, and can be used again without allocating.
///
/// ```
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use ram_block::{RamBlock, ReceiveList, SendList};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (here, there) = UnixStream::pair()?;
/// let (from, to) = (RamBlock::anonymous("a", 1 << 16)?, RamBlock::anonymous("b", 1 << 16)?);
/// from.write(0x1000, b"a page")?;
///
/// let mut list = SendList::new();
/// list.push_copied(&0x1000u64.to_be_bytes());
/// list.push_memory(&from, 0x1000..0x2000)?;
/// list.write_to_fd(here.as_fd())?;
///
/// let mut head = [0; 8];
/// let mut places = ReceiveList::new();
/// places.push_bytes(&mut head);
/// places.push_memory(&to, 0x1000..0x2000)?;
/// places.read_exact_from_fd(there.as_fd())?;
/// drop(places);
/// assert_eq!(u64::from_be_bytes(head), 0x1000);
/// let mut seen = [0; 6];
/// to.read(0x1000, &mut seen)?;
/// assert_eq!(&seen, b"a page");
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct SendList<'a> {
    pub(super) segments: Segments<Source<'a>>,
    pub(super) copied: Vec<u8>,
    /// The buffer for a `Write`.
    buffer: Vec<u8>,
}

impl<'a> SendList<'a> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes everything; what the list has allocated is kept.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.copied.clear();
    }

    /// Adds bytes.
    pub fn push_bytes(&mut self, bytes: &'a [u8]) {
        self.segments.push_bytes(Source::Lent(bytes));
    }

    /// Adds a copy of bytes: headers. Copies that follow each other are one segment.
    #[inline]
    pub fn push_copied(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
        self.join_copied(bytes.len());
    }

    /// Adds `len` bytes of the list's own, and lends them to be filled in; they are zero at first.
    pub fn push_zeros(&mut self, len: usize) -> &mut [u8] {
        let start = self.copied.len();
        self.copied.resize(start + len, 0);
        self.join_copied(len);
        &mut self.copied[start..]
    }

    /// Adds the last `len` of the list's own bytes.
    #[inline]
    fn join_copied(&mut self, len: usize) {
        let end = self.copied.len();
        let joined = self.segments.grow_bytes(|last| match last {
            Source::Copied(range) if range.end + len == end => {
                range.end = end;
                true
            }
            _ => false,
        });
        if !joined {
            self.segments.push_bytes(Source::Copied(end - len..end));
        }
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

    /// Bytes that are not written yet.
    pub fn len(&self) -> u64 {
        self.segments.len()
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments that are not written yet, the first perhaps in part.
    pub fn segments(&self) -> usize {
        self.segments.rest().len()
    }

    /// Removes the first `count` bytes, which were written.
    pub(super) fn advance(&mut self, count: u64) {
        self.segments.advance(count);
        if self.is_empty() {
            self.clear();
        }
    }

    /// Writes everything to any `Write`; guest memory goes through a buffer of 256 KiB.
    ///
    /// # Errors
    ///
    /// [`TransferError`], with the number of bytes that were written; the rest stays in the list.
    /// If the file of a block was truncated, the missing part is [`TransferError::MemoryGone`],
    /// unless the kernel refuses `process_vm_readv`: then it is a bus error.
    pub fn write_to(&mut self, out: &mut dyn Write) -> Result<(), TransferError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut done = 0;
        let mut result = Ok(());
        while result.is_ok() && !self.is_empty() {
            result = match self.segments.rest().first() {
                Some(Segment::Bytes(Source::Lent(bytes))) if bytes.len() >= BUFFER => {
                    let bytes = *bytes;
                    self.write_some(out, bytes, &mut done)
                }
                _ => match self.gather(&mut buffer) {
                    Err((id, offset)) if buffer.is_empty() => {
                        Err(TransferError::MemoryGone { done, id, offset })
                    }
                    // Write what was copied first; the next `gather` fails again.
                    _ => self.write_some(out, &buffer, &mut done),
                },
            };
        }
        buffer.clear();
        self.buffer = buffer;
        result
    }

    /// Copies the beginning of the list into `buffer`, at most [`BUFFER`] bytes. If memory is gone,
    /// returns the id of its block and the offset.
    fn gather(&self, buffer: &mut Vec<u8>) -> Result<(), (String, u64)> {
        buffer.clear();
        for segment in self.segments.rest() {
            let start = buffer.len();
            let some = (BUFFER - start).min(index(segment.len()));
            match segment {
                Segment::Bytes(source) => {
                    buffer.extend_from_slice(&source.of(&self.copied)[..some]);
                }
                Segment::Memory { block, range } => {
                    buffer.resize(start + some, 0);
                    if let Err(offset) = copy_out(block, range.start, &mut buffer[start..]) {
                        buffer.truncate(start + index(offset - range.start));
                        return Err((block.id().to_owned(), offset));
                    }
                }
            }
            if buffer.len() == BUFFER {
                break;
            }
        }
        Ok(())
    }

    /// Writes `bytes`, the beginning of the list.
    fn write_some(
        &mut self,
        out: &mut dyn Write,
        mut bytes: &[u8],
        done: &mut u64,
    ) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            match out.write(bytes) {
                Ok(0) => {
                    return Err(TransferError::UnexpectedEof { done: *done, missing: self.len() });
                }
                Ok(count) => {
                    let count = count.min(bytes.len());
                    bytes = &bytes[count..];
                    *done += count as u64;
                    self.advance(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TransferError::Io { done: *done, source }),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SendList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendList")
            .field("len", &self.len())
            .field("segments", &self.segments())
            .finish()
    }
}
