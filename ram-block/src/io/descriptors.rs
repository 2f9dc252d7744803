//! Lists that are written to descriptors, and filled from them, by the kernel: sockets, pipes and
//! files, on Linux.

use std::io;
use std::os::fd::BorrowedFd;

use crate::io::copy::copy_out;
use crate::io::error::TransferError;
use crate::io::receive::ReceiveList;
use crate::io::segments::{Bytes, Segment, Segments};
use crate::io::send::SendList;
use crate::io::vectored::{IoSlice, IoSliceMut, Stream, UIO_MAXIOV};
use crate::page::PageSize;

impl SendList<'_> {
    fn sources(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.segments.rest().iter().map(|segment| match segment {
            Segment::Bytes(source) => IoSlice::bytes(source.of(&self.copied)),
            Segment::Memory { block, range } => IoSlice::memory(&block.reserved(range.clone())),
        })
    }

    /// Writes everything to a socket, a pipe or a file, straight from guest memory, in as
    /// few calls as the operating system allows.
    ///
    /// Continues after short writes and signals, and waits also if the descriptor is nonblocking. A
    /// socket that the other side has closed gives an error and no `SIGPIPE`; with a pipe the
    /// program has to ignore that signal, as Rust programs do by default.
    ///
    /// # Errors
    ///
    /// [`TransferError`], with the number of bytes that were written; the rest stays in the list.
    pub fn write_to_fd(&mut self, fd: BorrowedFd<'_>) -> Result<(), TransferError> {
        let mut stream = Stream::new(fd);
        let mut done = 0;
        while !self.is_empty() {
            match stream.write(self.sources()) {
                Ok(0) => return Err(TransferError::UnexpectedEof { done, missing: self.len() }),
                Ok(count) => {
                    done += count as u64;
                    self.advance(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream
                    .wait(libc::POLLOUT)
                    .map_err(|source| TransferError::Io { done, source })?,
                Err(error) => return Err(self.segments.failure(done, error)),
            }
        }
        Ok(())
    }
}

impl ReceiveList<'_> {
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
}

impl<B: Bytes> Segment<B> {
    /// If it is memory, and some of it is gone: the block's id, and the offset of the first byte.
    fn first_gone(&self) -> Option<(String, u64)> {
        let Self::Memory { block, range } = self else { return None };
        if !block.may_vanish() {
            return None;
        }
        let page = PageSize::host();
        let pages = page.pages_spanned(range.start, range.end - range.start);
        let mut firsts = pages.map(|n| (n * page.bytes()).max(range.start));
        let gone = firsts.find(|at| copy_out(block, *at, &mut [0]).is_err())?;
        Some((block.id().to_owned(), gone))
    }
}

impl<B: Bytes> Segments<B> {
    /// The error of a call on these segments that failed with `source`.
    fn failure(&self, done: u64, source: io::Error) -> TransferError {
        if source.raw_os_error() == Some(libc::EFAULT) {
            let gone = self.rest().iter().take(UIO_MAXIOV).find_map(Segment::first_gone);
            if let Some((id, offset)) = gone {
                return TransferError::MemoryGone { done, id, offset };
            }
        }
        TransferError::Io { done, source }
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
