//! Lists of memory to be filled.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::io::copy::{BUFFER, copy_in};
use crate::io::error::TransferError;
use crate::io::segments::{Bytes, Segment, Segments};
use crate::io::vectored::{IoSliceMut, Stream, UIO_MAXIOV};
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
    segments: Segments<&'a mut [u8]>,
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

    fn targets(&mut self) -> impl Iterator<Item = IoSliceMut<'_>> {
        self.segments.rest_mut().iter_mut().map(|segment| match segment {
            Segment::Bytes(bytes) => IoSliceMut::bytes(bytes),
            Segment::Memory { block, range } => IoSliceMut::memory(&block.reserved(range.clone())),
        })
    }

    /// Reads once, then marks what may have been written.
    fn read_some(&mut self, stream: &mut Stream<'_>) -> io::Result<usize> {
        let result = stream.read(self.targets());
        let reach = match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Reach::Nowhere,
            // The kernel may have copied before it met the error.
            Err(_) => Reach::Everywhere,
            Ok(0) => Reach::Nowhere,
            Ok(_) if stream.is_direct() => Reach::Everywhere,
            Ok(count) => Reach::Exactly(*count as u64),
        };
        Marks { segments: self.segments.rest().iter(), left: UIO_MAXIOV, reach }.mark();
        if let Ok(count) = result {
            self.segments.advance(count as u64);
        }
        result
    }

    /// Reads once from a socket, a pipe or a file, straight into guest memory. Returns how many
    /// bytes it got; 0 is the end of the stream, or of an empty list.
    ///
    /// Waits for the first byte if the descriptor is blocking; one that is not gives an error of
    /// kind [`WouldBlock`](io::ErrorKind::WouldBlock).
    ///
    /// # Errors
    ///
    /// [`TransferError::Io`] and [`TransferError::MemoryGone`].
    pub fn read_from_fd(&mut self, fd: BorrowedFd<'_>) -> Result<usize, TransferError> {
        if self.is_empty() {
            return Ok(0);
        }
        let result = self.read_some(&mut Stream::new(fd));
        result.map_err(|source| self.segments.failure(0, source))
    }

    /// Reads from a socket, a pipe or a file, straight into guest memory, until everything is
    /// filled. Waits also if the descriptor is nonblocking.
    ///
    /// # Errors
    ///
    /// [`TransferError`], with the number of bytes that were read; segments that were not filled
    /// stay in the list.
    pub fn read_exact_from_fd(&mut self, fd: BorrowedFd<'_>) -> Result<(), TransferError> {
        let mut stream = Stream::new(fd);
        let mut done = 0;
        while !self.is_empty() {
            match self.read_some(&mut stream) {
                Ok(0) => return Err(TransferError::UnexpectedEof { done, missing: self.len() }),
                Ok(count) => done += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream
                    .wait(libc::POLLIN)
                    .map_err(|source| TransferError::Io { done, source })?,
                Err(error) => return Err(self.segments.failure(done, error)),
            }
        }
        Ok(())
    }

    /// Reads from any `Read` until everything is filled, and not a byte more; guest memory is
    /// filled through a buffer of 256 KiB.
    ///
    /// # Errors
    ///
    /// As [`read_exact_from_fd`](Self::read_exact_from_fd). If the file of a block was truncated,
    /// the missing part is [`TransferError::MemoryGone`], unless the kernel refuses
    /// `process_vm_writev`: then it is a bus error.
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

/// How far into its segments a call may have written.
#[derive(Clone, Copy)]
enum Reach {
    /// So many bytes. In memory that may vanish perhaps more: if the next byte could not be
    /// written, the call does not report what it had copied before.
    Exactly(u64),
    Nowhere,
    /// Unknown.
    Everywhere,
}

/// Segments of a call that are not marked yet. Dropping it marks the rest of them, also if a hook
/// that is called for a write panics.
struct Marks<'b, 'a> {
    segments: std::slice::Iter<'b, Segment<&'a mut [u8]>>,
    /// The most segments that the call was given.
    left: usize,
    reach: Reach,
}

impl Marks<'_, '_> {
    fn mark(&mut self) {
        while let (Some(segment), 1..) = (self.segments.next(), self.left) {
            self.left -= 1;
            let len = segment.len();
            let written = match &mut self.reach {
                Reach::Nowhere => return,
                Reach::Everywhere => len,
                Reach::Exactly(rest) => {
                    let written = len.min(*rest);
                    *rest -= written;
                    written
                }
            };
            if let Segment::Memory { block, range } = segment {
                let written = if block.may_vanish() { len } else { written };
                block.dirty().mark(range.start, written);
            }
        }
    }
}

impl Drop for Marks<'_, '_> {
    fn drop(&mut self) {
        self.mark();
    }
}
