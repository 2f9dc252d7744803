//! Where blocks are populated, found without reading their pages.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;

/// Bytes of the first lookup, and of one after a jump.
const MIN_WINDOW: u64 = 1 << 20;
/// The most populated ranges that one lookup caches.
const MAX_EXTENTS: usize = 4096;

/// The populated ranges of a block, cached for a walk through it; the rest are holes, which
/// read as zeros.
///
/// Cached: not updated when a page is filled or discarded after the lookup.
///
/// The source looks up only pages whose logging was re-armed before. A store that fills a hole
/// after the lookup then sets the page's bit in the accelerator's log, the next sync brings the
/// bit to the source, and the page is sent again. (With KVM's manual protection a store
/// *before* the re-arm changes nothing in the log: the page's bit is set already, and the
/// re-arm clears it.) The source drops the cache after each sync.
pub(crate) struct Holes {
    /// Bytes of the next lookup: few after a jump, up to `max_window` in a walk.
    window: u64,
    max_window: u64,
    block: Option<Arc<RamBlock>>,
    /// The range that was looked up, in bytes; `extents` are the populated parts of it.
    known: Range<u64>,
    extents: VecDeque<Range<u64>>,
}

impl Holes {
    /// An empty cache. One lookup covers `max_window` bytes at most: it takes a millisecond or
    /// two for each populated GiB.
    pub(crate) fn new(max_window: u64) -> Self {
        Self { window: 0, max_window, block: None, known: 0..0, extents: VecDeque::new() }
    }

    /// Drops the cache.
    pub(crate) fn clear(&mut self) {
        self.block = None;
    }

    /// Returns the next range at or after `at`, rounded out to pages, that may be other than zero;
    /// it contains `at` if that is populated. If there is none in the part that was looked up,
    /// the result is the empty range at the end of that part. Calls with ascending `at` use the
    /// cache; going back looks up again.
    pub(crate) fn next(&mut self, block: &Arc<RamBlock>, at: u64, page: u64) -> Range<u64> {
        self.next_below(block, at, page, block.len())
    }

    /// As [`next`](Self::next), but looks up only bytes below `limit`, which is greater than
    /// `at`.
    pub(crate) fn next_below(
        &mut self,
        block: &Arc<RamBlock>,
        at: u64,
        page: u64,
        limit: u64,
    ) -> Range<u64> {
        let same = self.block.as_ref().is_some_and(|known| Arc::ptr_eq(known, block));
        if !same || !self.known.contains(&at) {
            // Only a walk widens the window: a stream may jump to random offsets, and most of a
            // large lookup would be wasted.
            let walks =
                same && (self.known.end..=self.known.end.saturating_add(self.window)).contains(&at);
            self.window =
                if walks { self.window.saturating_mul(8) } else { MIN_WINDOW }.min(self.max_window);
            let mut end = at.saturating_add(self.window).min(limit);
            self.extents = block.data_extents(at..end).take(MAX_EXTENTS).collect();
            if self.extents.len() == MAX_EXTENTS {
                end = self.extents.back().map_or(end, |last| last.end);
            }
            self.block = Some(block.clone());
            self.known = at..end;
        }
        while let Some(first) = self.extents.front() {
            let end = first.end.next_multiple_of(page);
            if end > at {
                return first.start - first.start % page..end;
            }
            // The cache no longer covers the extent that is dropped.
            self.known.start = first.end;
            self.extents.pop_front();
        }
        self.known.end..self.known.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_finds_what_is_there_and_going_back_looks_anew() {
        let block = RamBlock::memfd("ram", 1 << 20).unwrap();
        let page = block.page_size().bytes();
        let write = |number: u64| block.write(number * page, &[1]).unwrap();
        [2, 3, 7].into_iter().for_each(write);
        let mut contents = Holes::new(10 * page);
        let mut next = |number: u64| {
            let found = contents.next(&block, number * page, page);
            found.start / page..found.end / page
        };
        assert_eq!([next(0), next(1), next(3)], [2..4, 2..4, 2..4]);
        write(4);
        assert_eq!([next(4), next(7)], [7..8, 7..8]);
        assert_eq!([next(8), next(9)], [10..10, 10..10]);
        assert_eq!(next(1), 2..5);
        assert_eq!([next(10), next(11)], [11..11, 21..21]);
    }
}
