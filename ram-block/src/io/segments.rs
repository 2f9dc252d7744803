//! A queue of pieces, consumed from its front byte by byte.

use std::io;
use std::ops::Range;
use std::ptr;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::io::copy::copy_out;
use crate::io::error::TransferError;
use crate::io::vectored::UIO_MAXIOV;

/// Bytes of a block.
pub(super) struct Memory<'a> {
    pub(super) block: &'a RamBlock,
    pub(super) range: Range<u64>,
}

impl Memory<'_> {
    /// The first byte whose memory is gone, if any.
    fn first_gone(&self) -> Option<u64> {
        if !self.block.may_vanish() {
            return None;
        }
        let Range { start, end } = self.range;
        let page = self.block.page_size();
        let mut firsts =
            page.pages_spanned(start, end - start).map(|n| (n * page.bytes()).max(start));
        firsts.find(|at| copy_out(self.block, *at, &mut [0]).is_err())
    }
}

pub(super) trait Piece<'a>: From<Memory<'a>> {
    fn len(&self) -> u64;

    /// Removes the first `count` bytes; the piece has at least as many.
    fn cut(&mut self, count: u64);

    fn memory(&self) -> Option<&Memory<'a>>;
    fn memory_mut(&mut self) -> Option<&mut Memory<'a>>;
}

/// Pieces in order. None of the remaining ones is empty.
pub(super) struct Pieces<P> {
    list: Vec<P>,
    /// The first remaining piece.
    next: usize,
    /// Remaining bytes.
    len: u64,
}

impl<P> Default for Pieces<P> {
    fn default() -> Self {
        Self { list: Vec::new(), next: 0, len: 0 }
    }
}

impl<P> Pieces<P> {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.list.capacity()
    }

    pub(super) fn rest(&self) -> &[P] {
        &self.list[self.next..]
    }

    pub(super) fn rest_mut(&mut self) -> &mut [P] {
        &mut self.list[self.next..]
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        (self.next, self.len) = (0, 0);
    }

    /// Keeps the allocation, for other pieces.
    pub(super) fn reuse<Q>(mut self) -> Pieces<Q> {
        self.list.clear();
        // No element is left. The standard library keeps the allocation.
        Pieces { list: self.list.into_iter().map_while(|_| None).collect(), next: 0, len: 0 }
    }
}

impl<'a, P: Piece<'a>> Pieces<P> {
    /// Adds a piece.
    pub(super) fn push(&mut self, piece: P) {
        if piece.len() > 0 {
            self.len += piece.len();
            self.list.push(piece);
        }
    }

    /// Extends the last remaining piece by what `grow` returns.
    pub(super) fn grow_last(&mut self, grow: impl FnOnce(&mut P) -> Option<u64>) -> bool {
        let grown = self.list.last_mut().and_then(grow);
        self.len += grown.unwrap_or(0);
        grown.is_some()
    }

    /// Adds bytes of a block; extends the last piece if they follow it.
    pub(super) fn push_memory(
        &mut self,
        block: &'a RamBlock,
        range: Range<u64>,
    ) -> Result<(), RamBlockError> {
        block.check_range(&range)?;
        let joined = self.grow_last(|last| {
            let last = last.memory_mut()?;
            (ptr::eq(last.block, block) && last.range.end == range.start).then(|| {
                last.range.end = range.end;
                range.end - range.start
            })
        });
        if !joined {
            self.push(Memory { block, range }.into());
        }
        Ok(())
    }

    /// Removes the first `count` bytes.
    pub(super) fn advance(&mut self, mut count: u64) {
        self.len -= count;
        while let Some(piece) = self.list.get_mut(self.next) {
            let some = piece.len().min(count);
            piece.cut(some);
            count -= some;
            if piece.len() > 0 {
                return;
            }
            self.next += 1;
        }
        self.clear();
    }

    /// The error of a call on these pieces that failed with `source`.
    pub(super) fn failure(&self, done: u64, source: io::Error) -> TransferError {
        if source.raw_os_error() == Some(libc::EFAULT) {
            for memory in self.rest().iter().take(UIO_MAXIOV).filter_map(Piece::memory) {
                if let Some(offset) = memory.first_gone() {
                    let id = memory.block.id().to_owned();
                    return TransferError::MemoryGone { done, id, offset };
                }
            }
        }
        TransferError::Io { done, source }
    }
}
