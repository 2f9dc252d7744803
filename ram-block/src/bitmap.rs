//! One client's bitmap: a bit per page, and a summary bit per word of them.
//!
//! A *leaf* word holds the bits of 64 pages; a *summary* word holds one bit for
//! each of 64 leaves, set when the leaf may be non-zero. A harvest follows the
//! summary and so costs what is dirty: 16 Mi clean pages (64 GiB of 4 KiB pages)
//! are 4,096 words to look at.
//!
//! # Why no mark is lost
//!
//! The obligation: a mark that has returned is seen by the next harvest. (Of two
//! harvests of the same bitmap at the same time, one of them has it: the one that
//! took the summary bit.) A
//! summary bit may be stale in one direction only: set, with nothing below it.
//!
//! A single mark (**M**) and a harvest (**H**) do, in this order:
//!
//! ```text
//!   M1  leaf    |= bit          H1  summary bit <- 0, was it set?
//!   M2  summary bit set?        H2  leaf        <- 0, take what it held
//!   M3  if not, summary |= bit
//! ```
//!
//! This is store buffering: each side writes one word and then reads the other.
//! M1, M2, H1 and H2 are sequentially consistent, so there is one total order of
//! them. If M1 comes before H2, the harvest takes the bit. Otherwise H1 < H2 <
//! M1 < M2, so M2 reads what H1 left or something later: either the bit is zero
//! and M3 sets it, or somebody else has set it since; the next harvest looks at
//! the leaf. If H never took the summary bit (H1 found it clear) then it was
//! clear before M3 of *every* marker of this leaf, none of which has returned.
//!
//! M2 must ask the summary, not whether M1 found the leaf at zero: another
//! marker may have set its leaf bit and not yet the summary, and this mark would
//! return with the summary still clear. H must clear the summary before the
//! leaf: in the other order a mark between the two sees the summary still set,
//! returns, and has it cleared behind its back.
//!
//! A range mark stores all ones into the leaves that it covers whole, with
//! release, and then ORs the summary *unconditionally*, with release. A harvest
//! that takes that summary bit has acquired it (later ORs of others continue the
//! release sequence) and sees the leaves; one that came before leaves the
//! later-written summary bit for the next harvest. The range mark reads nothing, so
//! it needs no fence.
//!
//! The page's own contents are published by the same operations: the store to
//! the page comes before M1 in its thread, H2 acquires, and the page is read
//! after H2. One step of this leans on the hardware rather than the language: a
//! range mark's plain store over a leaf that holds another marker's bit ends that
//! marker's release sequence, so that in the language's terms H2 acquires only the
//! range mark. On processors with multi-copy atomic stores (x86, Armv8, RISC-V) the
//! other marker's store to its page is visible wherever its overwritten leaf was.
//!
//! A leaf of which a harvest wants only a part is taken by an AND, and its
//! summary bit is left alone: it may still be needed.
//!
//! The tests at the end of this file check the argument with loom, and check
//! that both wrong orders above are caught.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use crate::page::index;
use crate::word::Word;

pub(crate) const BITS: u64 = u64::BITS as u64;

pub(crate) struct Bitmap<W: Word = AtomicU64> {
    leaves: Box<[W]>,
    summary: Box<[W]>,
}

/// The bits of word `word` that lie in `range` (bit numbers over all words).
pub(crate) fn mask_within(word: u64, range: &Range<u64>) -> u64 {
    let base = word * BITS;
    let low = range.start.clamp(base, base + BITS) - base;
    let high = range.end.clamp(base, base + BITS) - base;
    if low >= high {
        return 0;
    }
    (u64::MAX >> (BITS - (high - low))) << low
}

/// The words that hold the bits of `range`.
pub(crate) fn words_of(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / BITS..range.end.div_ceil(BITS)
}

impl<W: Word> Bitmap<W> {
    /// A clean bitmap of `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        let leaves = pages.div_ceil(BITS);
        Self { leaves: W::zeroed(index(leaves)), summary: W::zeroed(index(leaves.div_ceil(BITS))) }
    }

    /// Sets `bits` in leaf `leaf`.
    #[inline]
    pub(crate) fn mark_word(&self, leaf: u64, bits: u64) {
        self.leaves[index(leaf)].fetch_or_seq_cst(bits); // M1
        self.ensure_summary(leaf);
    }

    #[inline]
    fn ensure_summary(&self, leaf: u64) {
        let summary = &self.summary[index(leaf / BITS)];
        let bit = 1 << (leaf % BITS);
        if summary.load_seq_cst() & bit == 0 {
            summary.fetch_or_seq_cst(bit);
        }
    }

    /// Sets the bits of `pages`: whole words by stores, the edges by one OR each.
    pub(crate) fn mark_range(&self, pages: &Range<u64>) {
        let words = words_of(pages);
        if words.end - words.start <= 1 {
            let bits = mask_within(words.start, pages);
            if bits != 0 {
                self.mark_word(words.start, bits);
            }
            return;
        }
        for leaf in words.clone() {
            match mask_within(leaf, pages) {
                u64::MAX => self.leaves[index(leaf)].store_release(u64::MAX),
                bits => self.leaves[index(leaf)].fetch_or_release(bits),
            }
        }
        for summary in words_of(&words) {
            self.summary[index(summary)].fetch_or_release(mask_within(summary, &words));
        }
    }

    /// Clears the bits of `pages` and hands each non-zero word of them to `sink`,
    /// in ascending order, as (word number, bits).
    pub(crate) fn take(&self, pages: &Range<u64>, mut sink: impl FnMut(u64, u64)) {
        let leaves = words_of(pages);
        // Leaves that lie in the range with all their 64 pages.
        let whole = pages.start.div_ceil(BITS)..pages.end / BITS;
        for summary in words_of(&leaves) {
            let slot = &self.summary[index(summary)];
            let wanted = slot.load_seq_cst() & mask_within(summary, &leaves);
            if wanted == 0 {
                continue;
            }
            // H1. Bits of leaves that are only partly in the range stay set.
            let mut found = wanted & !mask_within(summary, &whole);
            match mask_within(summary, &whole) {
                0 => {}
                u64::MAX => found |= slot.swap_seq_cst(0),
                mask => found |= slot.fetch_and_seq_cst(!mask) & mask,
            }
            while found != 0 {
                let leaf = summary * BITS + u64::from(found.trailing_zeros());
                found &= found - 1;
                let mask = mask_within(leaf, pages);
                let word = &self.leaves[index(leaf)];
                // H2.
                let bits = match mask {
                    u64::MAX => word.swap_seq_cst(0),
                    mask => word.fetch_and_seq_cst(!mask) & mask,
                };
                if bits != 0 {
                    sink(leaf, bits);
                }
            }
        }
    }

    /// Whether `page` is marked, by its leaf alone.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.leaves[index(page / BITS)].load_seq_cst() & (1 << (page % BITS)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn masks_are_exact() {
        assert_eq!(mask_within(0, &(0..64)), u64::MAX);
        assert_eq!(mask_within(0, &(3..3)), 0);
        assert_eq!(mask_within(1, &(0..64)), 0);
        assert_eq!(mask_within(1, &(65..200)), u64::MAX << 1);
        assert_eq!(mask_within(0, &(63..64)), 1 << 63);
    }

    fn pages_taken(bitmap: &Bitmap, range: Range<u64>) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        bitmap.take(&range, |word, bits| {
            pages.extend((0..BITS).filter(|bit| bits >> bit & 1 != 0).map(|bit| word * BITS + bit));
        });
        pages
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Word(u64, u64),
        Range(Range<u64>),
        Take(Range<u64>),
    }

    const PAGES: u64 = 64 * 64 * 3 + 17;

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let range = || (0..=PAGES, 0..=PAGES).prop_map(|(a, b)| a.min(b)..a.max(b));
        let short = || (0..PAGES, 0..200u64).prop_map(|(a, n)| a..(a + n).min(PAGES));
        let operation = prop_oneof![
            4 => (0..PAGES / BITS, any::<u64>()).prop_map(|(w, b)| Operation::Word(w, b)),
            2 => short().prop_map(Operation::Range),
            1 => range().prop_map(Operation::Range),
            2 => short().prop_map(Operation::Take),
            1 => range().prop_map(Operation::Take),
        ];
        prop::collection::vec(operation, 1..40)
    }

    proptest! {
        /// Every sequence of marks and takes against a plain set of pages.
        #[test]
        fn behaves_as_a_set_of_pages(operations in operations()) {
            let bitmap: Bitmap = Bitmap::new(PAGES);
            let mut oracle = BTreeSet::new();
            for operation in operations {
                match operation {
                    Operation::Word(word, bits) => {
                        bitmap.mark_word(word, bits);
                        oracle.extend((0..BITS).filter(|b| bits >> b & 1 != 0).map(|b| word * BITS + b));
                    }
                    Operation::Range(range) => {
                        bitmap.mark_range(&range);
                        oracle.extend(range);
                    }
                    Operation::Take(range) => {
                        let expected: BTreeSet<_> =
                            oracle.iter().copied().filter(|page| range.contains(page)).collect();
                        oracle.retain(|page| !range.contains(page));
                        prop_assert_eq!(pages_taken(&bitmap, range), expected);
                    }
                }
            }
            prop_assert_eq!(pages_taken(&bitmap, 0..PAGES), oracle);
        }
    }
}

#[cfg(test)]
mod model_tests;
