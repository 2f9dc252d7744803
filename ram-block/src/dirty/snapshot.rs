//! The result of a harvest.

use std::fmt;
use std::ops::Range;

use crate::bitmap::bits::{BITS, bits_of, mask_within, runs, words_of};
use crate::page::index;

/// The pages of a range that were dirty when one client's bits were taken.
///
/// A plain value without a lock or an atomic: it can be read as often as needed
/// while guests go on writing. Kept between harvests it is a buffer that is not
/// allocated again.
#[derive(Clone, Default)]
pub struct DirtySnapshot {
    range: Range<u64>,
    /// Word n holds the pages from `(range.start / 64 + n) * 64`, bits outside
    /// `range` being zero.
    words: Vec<u64>,
    /// The part of `words` that may be non-zero: all that needs zeroing on reuse.
    touched: Range<usize>,
}

impl DirtySnapshot {
    /// Empties the snapshot for `range`, keeping its buffer.
    pub(crate) fn reset(&mut self, range: Range<u64>) {
        self.words[self.touched.clone()].fill(0);
        self.touched = 0..0;
        let words = words_of(&range);
        self.words.resize(index(words.end - words.start), 0);
        self.range = range;
    }

    /// Adds a word of the block's bitmap that lies in the snapshot's range.
    pub(crate) fn put(&mut self, word: u64, bits: u64) {
        let at = index(word - self.range.start / BITS);
        self.words[at] |= bits;
        self.touched = if self.touched.is_empty() {
            at..at + 1
        } else {
            self.touched.start.min(at)..self.touched.end.max(at + 1)
        };
    }

    /// The non-zero words as (word number in the block, bits), in ascending order.
    pub(crate) fn block_words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let base = self.range.start / BITS + self.touched.start as u64;
        let words = &self.words[self.touched.clone()];
        (base..).zip(words.iter().copied()).filter(|(_, bits)| *bits != 0)
    }

    /// The range that was harvested, in pages of the block.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The bits, 64 pages a word, the least significant bit the lowest page.
    ///
    /// Word 0 starts at page `range().start` rounded down to a multiple of 64; bits outside the
    /// range are zero. A consumer can OR them into a private bitmap.
    pub fn as_words(&self) -> &[u64] {
        &self.words
    }

    /// Whether nothing was dirty.
    pub fn is_empty(&self) -> bool {
        self.block_words().next().is_none()
    }

    /// How many pages were dirty.
    pub fn count(&self) -> u64 {
        self.block_words().map(|(_, bits)| u64::from(bits.count_ones())).sum()
    }

    /// Whether `page` was dirty; false outside the harvested range.
    pub fn is_dirty(&self, page: u64) -> bool {
        self.any_dirty(page..page.saturating_add(1))
    }

    /// Whether a page of `pages` was dirty; those outside the harvested range
    /// count as clean.
    pub fn any_dirty(&self, pages: Range<u64>) -> bool {
        let pages = pages.start.max(self.range.start)..pages.end.min(self.range.end);
        let base = self.range.start / BITS;
        words_of(&pages).any(|word| self.words[index(word - base)] & mask_within(word, &pages) != 0)
    }

    /// The dirty pages, in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.block_words().flat_map(|(word, bits)| bits_of(word, bits))
    }

    /// The dirty pages as runs of neighbours, in ascending order.
    ///
    /// ```
    /// # use ram_block::{DirtyClient, RamBlock};
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let page = ram.page_size().bytes();
    /// let log = ram.dirty().claim(DirtyClient::MIGRATION)?;
    /// ram.dirty().mark(2 * page, 3 * page);
    /// ram.dirty().mark(9 * page, 1);
    /// let harvest = log.snapshot_and_clear(0..ram.pages())?;
    /// assert_eq!(harvest.runs().collect::<Vec<_>>(), [2..5, 9..10]);
    /// # harvest.commit();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        runs(self.block_words())
    }
}

impl fmt::Debug for DirtySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtySnapshot")
            .field("range", &self.range)
            .field("dirty", &self.runs().collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Pages, runs, counts and queries against a set of pages; twice, so that a
        /// reused buffer is shown to be clean.
        #[test]
        fn views_agree_with_a_set_of_pages(
            rounds in prop::collection::vec(
                (0..300u64, 1..500u64, prop::collection::btree_set(0..500u64, 0..120)), 1..4),
        ) {
            let mut snapshot = DirtySnapshot::default();
            for (start, len, pages) in rounds {
                let range = start..start + len;
                let pages: BTreeSet<u64> =
                    pages.into_iter().map(|p| start + p % len).collect();
                snapshot.reset(range.clone());
                for page in &pages {
                    snapshot.put(page / BITS, 1 << (page % BITS));
                }
                prop_assert_eq!(snapshot.pages().collect::<BTreeSet<_>>(), pages.clone());
                prop_assert_eq!(snapshot.count(), pages.len() as u64);
                prop_assert_eq!(snapshot.is_empty(), pages.is_empty());
                let runs: Vec<_> = snapshot.runs().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "runs touch: \
                    {:?}", runs);
                prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), pages.clone());
                for page in 0..start + len + 70 {
                    prop_assert_eq!(snapshot.is_dirty(page), pages.contains(&page));
                    let some = page..page + 5;
                    prop_assert_eq!(snapshot.any_dirty(some.clone()), pages.range(some).next()
                        .is_some());
                }
            }
        }
    }

    #[test]
    fn a_run_crosses_words() {
        let mut snapshot = DirtySnapshot::default();
        snapshot.reset(0..256);
        for word in 0..4 {
            snapshot.put(word, u64::MAX);
        }
        assert!(snapshot.runs().eq(std::iter::once(0..256)));
    }
}
