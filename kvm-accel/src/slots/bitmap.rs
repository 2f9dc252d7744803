//! A slot's dirty bitmap as KVM reported it.

use std::ops::Range;

use crate::slots::aligned_words::AlignedWords;

/// Words for one bit of the summary.
const CHUNK: usize = 64;
/// Up to so many empty chunks are included in a part: scanning them costs less than another part.
const MAX_GAP: usize = 8;

/// The bits of a report that were not cleared since: one for each page, 64 to a word.
///
/// A summary of one bit for 64 words, made while the report is in the CPU's cache, makes all later
/// steps cost as much as there are bits set, not as there are pages.
#[derive(Clone, Debug, Default)]
pub(super) struct SlotBitmap {
    words: AlignedWords,
    /// How many of the words belong to the last report.
    len: usize,
    /// A zero bit says that none of its words has a bit set. If all are zero, the words may hold
    /// anything.
    summary: Vec<u64>,
}

impl SlotBitmap {
    /// Calls `get` to write the words of `pages` pages. If it fails, no bit is set.
    pub(super) fn fetch<E>(
        &mut self,
        pages: u64,
        get: impl FnOnce(&mut [u64]) -> Result<(), E>,
    ) -> Result<(), E> {
        let words = index(pages.div_ceil(64));
        self.forget();
        if self.words.len() < words {
            self.words = AlignedWords::zeroed(words);
            self.summary.resize(words.div_ceil(CHUNK).div_ceil(64), 0);
        }
        self.len = words;
        let words = &mut self.words[..words];
        get(words)?;
        ram_block::summarize(words, &mut self.summary);
        Ok(())
    }

    /// Clears all bits.
    pub(super) fn forget(&mut self) {
        self.summary.fill(0);
    }

    /// As [`forget`](Self::forget), and frees the memory.
    pub(super) fn discard(&mut self) {
        *self = Self::default();
    }

    /// Whether no bit is set; may be false although all bits were [cleared](Self::clear).
    pub(super) fn is_clean(&self) -> bool {
        self.next_chunk(0, true).is_none()
    }

    /// The next chunk from number `from` on in which a bit may be set or, if not `set`, in which
    /// none is.
    fn next_chunk(&self, from: usize, set: bool) -> Option<usize> {
        let word = |n: usize| if set { self.summary[n] } else { !self.summary[n] };
        let mut n = from / 64;
        let mut bits = if n < self.summary.len() { word(n) & (u64::MAX << (from % 64)) } else { 0 };
        while bits == 0 {
            n += 1;
            if n >= self.summary.len() {
                return None;
            }
            bits = word(n);
        }
        Some(n * 64 + bits.trailing_zeros() as usize)
    }

    /// Parts that contain all set bits: the number of the first word, and the words.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, &[u64])> {
        let mut next = self.next_chunk(0, true);
        std::iter::from_fn(move || {
            let first = next?;
            let end = loop {
                let end = self.next_chunk(next?, false).unwrap_or(self.summary.len() * 64);
                next = self.next_chunk(end, true);
                if next.is_none_or(|next| next - end > MAX_GAP) {
                    break end;
                }
            };
            let words = first * CHUNK..(end * CHUNK).min(self.len);
            Some(((first * CHUNK) as u64, &self.words[words]))
        })
    }

    /// The first word of `words` that is not zero.
    pub(super) fn first(&self, words: &Range<usize>) -> Option<usize> {
        let mut from = words.start;
        while from < words.end {
            let chunk = self.next_chunk(from / CHUNK, true)?;
            let start = from.max(chunk * CHUNK);
            let end = ((chunk + 1) * CHUNK).min(words.end).min(self.len);
            let found = self.words.get(start..end)?.iter().position(|word| *word != 0);
            if let Some(found) = found {
                return Some(start + found);
            }
            from = (chunk + 1) * CHUNK;
        }
        None
    }

    /// The words from `first`, which is not zero, up to the last of `words` that is not.
    pub(super) fn up_to_last(&self, first: usize, end: usize) -> Range<usize> {
        let mut end = end.min(self.len);
        while first < end {
            let chunk = (end - 1) / CHUNK;
            let start = first.max(chunk * CHUNK);
            if self.summary[chunk / 64] >> (chunk % 64) & 1 != 0 {
                let last = self.words[start..end].iter().rposition(|word| *word != 0);
                if let Some(last) = last {
                    return first..start + last + 1;
                }
            }
            end = start;
        }
        first..first + 1
    }

    /// The words of a range in which a bit is set.
    pub(super) fn words(&self, range: Range<usize>) -> &[u64] {
        &self.words[range]
    }

    /// Clears the bits of a range.
    pub(super) fn clear(&mut self, range: Range<usize>) {
        let whole = range.start.div_ceil(CHUNK)..range.end / CHUNK;
        for chunk in whole {
            self.summary[chunk / 64] &= !(1 << (chunk % 64));
        }
        self.words[range].fill(0);
    }
}

pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Fetch { pages: u64, words: Vec<(usize, u64)>, fails: bool },
        Take { from: usize, len: usize, most: usize },
        Forget,
    }

    const WORDS: usize = 10_000;

    fn step() -> impl Strategy<Value = Step> {
        let pages = prop_oneof![Just(WORDS as u64 * 64), 1..WORDS as u64 * 64];
        let word = prop_oneof![(0..64u32).prop_map(|bit| 1 << bit), any::<u64>()];
        prop_oneof![
            2 => (pages, prop::collection::vec((0..WORDS, word), 0..40), prop::bool::weighted(0.2))
                .prop_map(|(pages, words, fails)| Step::Fetch { pages, words, fails }),
            5 => (0..WORDS, 1..WORDS, 1..400usize)
                .prop_map(|(from, len, most)| Step::Take { from, len, most }),
            1 => Just(Step::Forget),
        ]
    }

    proptest! {
        /// Against plain words.
        #[test]
        fn behaves_as_plain_words(
            steps in prop::collection::vec(step(), 1..40),
        ) {
            let (mut report, mut oracle) = (SlotBitmap::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Fetch { pages, words, fails } => {
                        let count = index(pages.div_ceil(64));
                        oracle = vec![0; count];
                        for (n, word) in words.into_iter().filter(|(n, _)| *n < count) {
                            oracle[n] |= word;
                        }
                        let result = report.fetch(pages, |into| {
                            into.copy_from_slice(&oracle);
                            if fails { Err(()) } else { Ok(()) }
                        });
                        prop_assert_eq!(result.is_err(), fails);
                        if fails {
                            oracle.fill(0);
                        }
                    }
                    Step::Take { from, len, most } => {
                        let end = (from + len).min(oracle.len());
                        let mut at = from;
                        while let Some(first) = report.first(&(at..end)) {
                            prop_assert!(oracle[at..first].iter().all(|word| *word == 0));
                            let stop = (first + most).min(end);
                            let range = report.up_to_last(first, stop);
                            prop_assert!(oracle[range.end..stop].iter().all(|word| *word == 0));
                            prop_assert_eq!(report.words(range.clone()), &oracle[range.clone()]);
                            report.clear(range.clone());
                            oracle[range].fill(0);
                            at = stop;
                        }
                        prop_assert!(oracle[at.min(end)..end].iter().all(|word| *word == 0));
                    }
                    Step::Forget => {
                        report.forget();
                        oracle.fill(0);
                    }
                }
                let mut parts = vec![0; oracle.len()];
                for (first, words) in report.parts() {
                    parts[index(first)..index(first) + words.len()].copy_from_slice(words);
                }
                prop_assert!(parts == oracle);
                prop_assert!(!report.is_clean() || oracle.iter().all(|word| *word == 0));
            }
        }
    }

    #[test]
    fn a_report_that_is_clean_has_no_parts() {
        let mut report = SlotBitmap::default();
        report.fetch::<Infallible>(1 << 20, |_| Ok(())).unwrap();
        assert!(report.is_clean());
        assert_eq!(report.parts().count(), 0);
        assert_eq!(report.first(&(0..usize::MAX)), None);
        report.discard();
        assert_eq!(report.first(&(0..usize::MAX)), None);
    }
}
