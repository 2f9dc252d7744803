//! The bitmap that any thread marks.
//!
//! A *leaf* word holds the bits of 64 pages; a *summary* word holds one bit for
//! each of 64 leaves, set when the leaf may be non-zero; a *top* word holds one bit
//! for each of 64 summary words likewise. A harvest follows them down and so costs
//! what is dirty: 4 Gi clean pages (16 TiB of 4 KiB pages) are 16,384 words to look at.
//!
//! # Why no mark is lost
//!
//! The obligation: a mark that has returned is seen by the next harvest. (Of two
//! harvests of the same bitmap at the same time, one of them has it: the one that
//! took the bits above it.) A summary or top bit may be stale in one direction only:
//! set, with nothing below it.
//!
//! A single mark (**M**) and a harvest (**H**) do, in this order:
//!
//! ```text
//!   M1  leaf bit set?    else leaf    |= bit H0  top bit     <- 0, was it set?
//!   M2  summary bit set? else summary |= bit H1  summary bit <- 0, was it set?
//!   M3  top bit set?     else top     |= bit H2  leaf        <- 0, take what it held
//! ```
//!
//! Say that M1 sets the bit. This is store buffering: each side writes one word and then reads the
//! others'.
//! All of these are sequentially consistent, so there is one total order of them. If
//! M1 comes before H2, and H got that far, the harvest takes the bit. Otherwise, if H
//! got to H2 first, H0 < H1 < H2 < M1 < M2 < M3: M2 and M3 read what H1 and H0 left
//! or something later. Where they find a zero they set the bit; where they find it
//! set, another mark has set it since. Either way both bits are set after H took them, and
//! the next harvest looks at the leaf. If H found a bit above the leaf clear, then no
//! mark of this leaf had passed the step that sets it, so none had returned.
//!
//! If M1 finds the bit set, it reads what another marker has set after the last H2 of the leaf, or
//! it comes before that H2 itself, which takes the bit. In the first case M2 and M3 come after that
//! H2, and H0 and H1 before it, as if M1 had set the bit. In the second the harvest has the mark,
//! if it makes the marker's store to the page visible to itself before it reads the page: by the
//! barrier of `dirty::marks`.
//!
//! M2 must ask the summary, not whether M1 found the leaf at zero: another
//! marker may have set its leaf bit and not yet the summary, and this mark would
//! return with the summary still clear. M3 must be asked for even if M2 found the
//! summary bit set, for the same reason. H must clear from the top down: in the other
//! order a mark between the two sees the upper bit still set, returns, and has it
//! cleared behind its back.
//!
//! A range mark stores all ones into the leaves that it covers whole, passes one
//! sequentially consistent fence, and then does M2 and M3 for whole words of summary
//! and top. If H2 does not see such a store, H2 comes before the fence in the total
//! order, and so do H0 and H1; what the range mark reads after the fence is what they
//! left or later.
//!
//! The page's own contents are published by the same operations, if M1 sets the bit: the store to
//! the page comes before M1 in its thread, H2 acquires, and the page is read
//! after H2. One step of this leans on the hardware rather than the language: a
//! range mark's plain store over a leaf that holds another marker's bit ends that
//! marker's release sequence, so that in the language's terms H2 acquires only the
//! range mark. On processors with multi-copy atomic stores (x86, Armv8, RISC-V) the
//! other marker's store to its page is visible wherever its overwritten leaf was.
//!
//! A word of which a harvest wants only a part is taken by an AND, and the bits above
//! a word that is only partly wanted are left alone: they may still be needed.
//!
//! The tests at the end of this file check the argument with loom and shuttle, and
//! check that wrong orders are caught.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

use crate::bitmap::bits::{BITS, GRANULE, bits_of, mask_within, whole_words_of, words_of};
use crate::bitmap::word::Word;
use crate::page::{allocation, index};

pub(crate) struct Bitmap<W: Word = AtomicU64> {
    leaves: W::Array,
    summary: W::Array,
    top: W::Array,
}

/// Sets bits of a word; only loads it if they are set already.
#[inline]
fn ensure<W: Word>(words: &[W], word: u64, bits: u64) {
    let word = &words[index(word)];
    if word.load_seq_cst() & bits != bits {
        word.fetch_or_seq_cst(bits);
    }
}

/// Takes the bits of word `word` that lie in `wanted`; clears those in `whole`.
fn take_upper<W: Word>(words: &[W], word: u64, wanted: &Range<u64>, whole: &Range<u64>) -> u64 {
    let slot = &words[index(word)];
    let found = slot.load_seq_cst() & mask_within(word, wanted);
    if found == 0 {
        return 0;
    }
    match mask_within(word, whole) {
        0 => found,
        u64::MAX => found | slot.swap_seq_cst(0),
        mask => found | slot.fetch_and_seq_cst(!mask) & mask,
    }
}

impl<W: Word> Bitmap<W> {
    /// A clean bitmap of `pages` pages, if the operating system has the addresses.
    pub(crate) fn new(pages: u64) -> io::Result<Self> {
        let leaves = pages.div_ceil(BITS);
        let summary = leaves.div_ceil(BITS);
        Ok(Self {
            leaves: W::zeroed(allocation(leaves)?)?,
            summary: W::zeroed(allocation(summary)?)?,
            top: W::zeroed(allocation(summary.div_ceil(BITS))?)?,
        })
    }

    /// Sets `bits` in leaf `leaf`.
    #[inline]
    pub(crate) fn mark_word(&self, leaf: u64, bits: u64) {
        ensure(&self.leaves, leaf, bits); // M1
        ensure(&self.summary, leaf / BITS, 1 << (leaf % BITS)); // M2
        let summary = leaf / BITS;
        ensure(&self.top, summary / BITS, 1 << (summary % BITS)); // M3
    }

    /// Sets the bits of `pages`: whole words by stores, the edges by one OR each.
    pub(crate) fn mark_range(&self, pages: &Range<u64>) {
        let leaves = words_of(pages);
        if leaves.end - leaves.start <= 1 {
            let bits = mask_within(leaves.start, pages);
            if bits != 0 {
                self.mark_word(leaves.start, bits);
            }
            return;
        }
        let whole = whole_words_of(pages);
        for leaf in [leaves.start, leaves.end - 1] {
            if !whole.contains(&leaf) {
                ensure(&self.leaves, leaf, mask_within(leaf, pages));
            }
        }
        if !whole.is_empty() {
            W::fill_release(&self.leaves[index(whole.start)..index(whole.end)]);
        }
        W::fence_seq_cst();
        let summaries = words_of(&leaves);
        for summary in summaries.clone() {
            ensure(&self.summary, summary, mask_within(summary, &leaves));
        }
        for top in words_of(&summaries) {
            ensure(&self.top, top, mask_within(top, &summaries));
        }
    }

    /// The first granule of `pages` (the pages under one top word) that may have a marked page.
    pub(crate) fn dirty_granule(&self, pages: &Range<u64>) -> Option<Range<u64>> {
        let mut tops = words_of(&words_of(&words_of(pages)));
        let top = tops.find(|top| self.top[index(*top)].load_seq_cst() != 0)?;
        Some((top * GRANULE).max(pages.start)..((top + 1) * GRANULE).min(pages.end))
    }

    /// Clears the bits of `pages` and hands each non-zero word of them to `sink`,
    /// in ascending order, as (word number, bits).
    pub(crate) fn take(&self, pages: &Range<u64>, mut sink: impl FnMut(u64, u64)) {
        let (leaves, whole_leaves) = (words_of(pages), whole_words_of(pages));
        let (summaries, whole_summaries) = (words_of(&leaves), whole_words_of(&whole_leaves));
        for top in words_of(&summaries) {
            // H0.
            let found = take_upper(&self.top, top, &summaries, &whole_summaries);
            for summary in bits_of(top, found) {
                // H1.
                let found = take_upper(&self.summary, summary, &leaves, &whole_leaves);
                for leaf in bits_of(summary, found) {
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
    }

    /// Hands each non-zero word of the bits of `pages` to `sink`, as [`take`](Self::take)
    /// does, and leaves them.
    pub(crate) fn visit(&self, pages: &Range<u64>, mut sink: impl FnMut(u64, u64)) {
        let leaves = words_of(pages);
        let summaries = words_of(&leaves);
        let look = |words: &[W], word: u64, range: &Range<u64>| {
            words[index(word)].load_seq_cst() & mask_within(word, range)
        };
        for top in words_of(&summaries) {
            for summary in bits_of(top, look(&self.top, top, &summaries)) {
                for leaf in bits_of(summary, look(&self.summary, summary, &leaves)) {
                    let bits = look(&self.leaves, leaf, pages);
                    if bits != 0 {
                        sink(leaf, bits);
                    }
                }
            }
        }
    }

    /// Whether one of `pages` is marked.
    #[inline]
    pub(crate) fn any(&self, pages: &Range<u64>) -> bool {
        if pages.is_empty() {
            return false;
        }
        // The fast path of each store while a page is watched: one load, and little around it.
        let last = pages.end - 1;
        if pages.start / BITS == last / BITS {
            let wanted = u64::MAX >> (BITS - 1 - (last - pages.start)) << (pages.start % BITS);
            return self.leaves[index(pages.start / BITS)].load_seq_cst() & wanted != 0;
        }
        self.any_of_many(pages)
    }

    #[cold]
    fn any_of_many(&self, pages: &Range<u64>) -> bool {
        let mut found = false;
        self.visit(pages, |_, _| found = true);
        found
    }

    /// Clears all bits and frees their memory; costs as much as was touched.
    ///
    /// A mark that is under way may leave a bit of any level behind. No mark that begins
    /// after this has returned is lost by it: it sets its bits where they are missing,
    /// and what was left behind below a clear bit is taken with the next mark near it.
    pub(crate) fn reset(&self) {
        for words in [&self.leaves, &self.summary, &self.top] {
            W::reset(words);
        }
    }

    /// As [`contains`](Self::contains), ordered only before what this thread reads next.
    #[inline]
    pub(crate) fn contains_acquire(&self, page: u64) -> bool {
        self.leaves[index(page / BITS)].load_acquire() & (1 << (page % BITS)) != 0
    }

    /// Whether `page` is marked, by its leaf alone.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.leaves[index(page / BITS)].load_seq_cst() & (1 << (page % BITS)) != 0
    }
}

#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
impl Bitmap<loom::sync::atomic::AtomicU64> {
    /// As [`contains`](Self::contains), without any order.
    pub(crate) fn contains_relaxed(&self, page: u64) -> bool {
        let leaf = self.leaves[index(page / BITS)].load(loom::sync::atomic::Ordering::Relaxed);
        leaf & (1 << (page % BITS)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn any_looks_at_exactly_the_pages() {
        let bitmap: Bitmap = Bitmap::new(256).unwrap();
        for page in [0, 1, 63, 64, 100, 127, 128, 255] {
            bitmap.mark_range(&(page..page + 1));
            for start in 0..=256 {
                for end in start..=256 {
                    let expected = (start..end).contains(&page);
                    assert_eq!(bitmap.any(&(start..end)), expected, "{page} in {start}..{end}");
                }
            }
            bitmap.take(&(0..256), |_, _| ());
        }
    }

    fn pages_taken(bitmap: &Bitmap, range: Range<u64>) -> Vec<bool> {
        let mut pages = vec![false; index(PAGES)];
        let mut last = None;
        bitmap.take(&range, |word, bits| {
            assert!(last < Some(word) && bits != 0, "words come once each and in order");
            last = Some(word);
            bits_of(word, bits).for_each(|page| pages[index(page)] = true);
        });
        pages
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Word(u64, u64),
        Range(Range<u64>),
        Take(Range<u64>),
    }

    const PAGES: u64 = 64 * 64 * 64 * 2 + 64 * 64 * 3 + 17;

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let range = || (0..=PAGES, 0..=PAGES).prop_map(|(a, b)| a.min(b)..a.max(b));
        let short = || (0..PAGES, 0..20_000u64).prop_map(|(a, n)| a..(a + n).min(PAGES));
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
    // WebAssembly reads no PROPTEST_CASES, and is slow.
    #![proptest_config(match cfg!(target_family = "wasm") {
        true => ProptestConfig::with_cases(16),
        false => ProptestConfig::default(),
    })]
        /// Every sequence of marks and takes against a plain set of pages.
        #[test]
        fn behaves_as_a_set_of_pages(operations in operations()) {
            let bitmap: Bitmap = Bitmap::new(PAGES).unwrap();
            let mut oracle = vec![false; index(PAGES)];
            for operation in operations {
                match operation {
                    Operation::Word(word, bits) => {
                        bitmap.mark_word(word, bits);
                        bits_of(word, bits).for_each(|page| oracle[index(page)] = true);
                    }
                    Operation::Range(range) => {
                        bitmap.mark_range(&range);
                        oracle[index(range.start)..index(range.end)].fill(true);
                    }
                    Operation::Take(range) => {
                        let mut expected = vec![false; index(PAGES)];
                        let bytes = index(range.start)..index(range.end);
                        expected[bytes.clone()].copy_from_slice(&oracle[bytes.clone()]);
                        oracle[bytes].fill(false);
                        prop_assert!(pages_taken(&bitmap, range) == expected);
                    }
                }
            }
            prop_assert!(pages_taken(&bitmap, 0..PAGES) == oracle);
        }
    }
}

#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;
