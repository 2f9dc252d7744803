//! A list of segments, consumed from its front byte by byte: of bytes, and of guest memory.

use std::ops::Range;
use std::sync::Arc;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;

/// A segment, without the part that was dealt with already. `B` is the bytes: to be written, or to
/// be filled.
pub(super) enum Segment<B> {
    Bytes(B),
    Memory { block: Arc<RamBlock>, range: Range<u64> },
}

/// Bytes that are consumed from their front.
pub(super) trait Bytes {
    fn len(&self) -> u64;

    /// Removes the first `count` bytes, of at least as many.
    fn cut(&mut self, count: u64);
}

impl<B: Bytes> Segment<B> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Memory { range, .. } => range.end - range.start,
        }
    }

    fn cut(&mut self, count: u64) {
        match self {
            Self::Bytes(bytes) => bytes.cut(count),
            Self::Memory { range, .. } => range.start += count,
        }
    }
}

/// Segments in order. None of the remaining ones is empty.
pub(super) struct Segments<B> {
    list: Vec<Segment<B>>,
    /// The first remaining segment.
    next: usize,
    /// Remaining bytes.
    len: u64,
}

impl<B> Default for Segments<B> {
    fn default() -> Self {
        Self { list: Vec::new(), next: 0, len: 0 }
    }
}

impl<B: Bytes> Segments<B> {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn rest(&self) -> &[Segment<B>] {
        &self.list[self.next..]
    }

    pub(super) fn rest_mut(&mut self) -> &mut [Segment<B>] {
        &mut self.list[self.next..]
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        (self.next, self.len) = (0, 0);
    }

    fn push(&mut self, segment: Segment<B>) {
        if segment.len() > 0 {
            self.len += segment.len();
            self.list.push(segment);
        }
    }

    /// Adds bytes.
    pub(super) fn push_bytes(&mut self, bytes: B) {
        self.push(Segment::Bytes(bytes));
    }

    /// Extends the last remaining segment, if it is bytes and `grow` does so; returns whether it
    /// does.
    pub(super) fn grow_bytes(&mut self, grow: impl FnOnce(&mut B) -> bool) -> bool {
        let Some(Segment::Bytes(last)) = self.list.last_mut() else { return false };
        let before = last.len();
        let grown = grow(last);
        self.len += last.len() - before;
        grown
    }

    /// Adds bytes of a block; extends the last segment if they follow it.
    pub(super) fn push_memory(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
    ) -> Result<(), RamBlockError> {
        block.check_range(&bytes)?;
        match self.list.last_mut() {
            Some(Segment::Memory { block: last, range })
                if Arc::ptr_eq(last, block) && range.end == bytes.start =>
            {
                range.end = bytes.end;
                self.len += bytes.end - bytes.start;
            }
            _ => self.push(Segment::Memory { block: block.clone(), range: bytes }),
        }
        Ok(())
    }

    /// Removes the first `count` bytes.
    pub(super) fn advance(&mut self, mut count: u64) {
        self.len -= count;
        while let Some(segment) = self.list.get_mut(self.next) {
            let some = segment.len().min(count);
            segment.cut(some);
            count -= some;
            if segment.len() > 0 {
                return;
            }
            self.next += 1;
        }
        self.clear();
    }
}
