//! Where blocks have contents, without looking at them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;

/// Bytes in which contents are looked for after a jump.
const FEW: u64 = 1 << 20;
/// The most pieces of contents that are remembered.
const MAX_EXTENTS: usize = 4096;

/// Where a block has contents, as far as it was looked up, for a walk through it.
///
/// A page that is filled or given back since it was looked up is not noticed: who asks
/// has to know why that does not matter.
///
/// The source looks up only what is watched already: a store that fills a hole after that sets
/// its bit in the log, which comes to the source with the next sync only, and the page is sent
/// again. (With KVM's manual protection a store *before* that changes nothing in the log, as
/// the page's bit is set until it is cleared, and then is gone.) After each sync all is looked
/// up anew.
pub(crate) struct Holes {
    /// Bytes in which it is looked for at once: few after a jump, up to `most` in a walk.
    window: u64,
    most: u64,
    block: Option<Arc<RamBlock>>,
    /// What was looked up, in bytes.
    known: Range<u64>,
    extents: VecDeque<Range<u64>>,
}

impl Holes {
    /// Nothing is known yet. It will be looked for in up to `most` bytes at once: what that
    /// costs is a millisecond or two for each GiB that is there.
    pub(crate) fn new(most: u64) -> Self {
        Self { window: 0, most, block: None, known: 0..0, extents: VecDeque::new() }
    }

    /// Forgets what is known.
    pub(crate) fn clear(&mut self) {
        self.block = None;
    }

    /// The next bytes from `at` on, rounded out to pages, that may be other than zero. They
    /// begin at `at` or before it if it is among them. What is asked for grows; if it does
    /// not, all is looked up anew.
    pub(crate) fn next(&mut self, block: &Arc<RamBlock>, at: u64, page: u64) -> Range<u64> {
        self.next_below(block, at, page, block.len())
    }

    /// As [`next`](Self::next), of the bytes below `limit`, which `at` is: what lies behind that
    /// is not looked up yet.
    pub(crate) fn next_below(
        &mut self,
        block: &Arc<RamBlock>,
        at: u64,
        page: u64,
        limit: u64,
    ) -> Range<u64> {
        let same = self.block.as_ref().is_some_and(|known| Arc::ptr_eq(known, block));
        if !same || !self.known.contains(&at) {
            // Who jumps about, as a stream can, is not worth much looking.
            let walks =
                same && (self.known.end..=self.known.end.saturating_add(self.window)).contains(&at);
            self.window = if walks { self.window.saturating_mul(8) } else { FEW }.min(self.most);
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
            // What is dropped is not known any more.
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
