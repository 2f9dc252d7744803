//! Bits, words and granules: which bits of which words a range of pages is.

use std::ops::Range;

pub(crate) const BITS: u64 = u64::BITS as u64;

/// Pages below one top word.
pub(crate) const GRANULE: u64 = BITS * BITS * BITS;

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

/// The words of which all bits lie in `range`.
pub(crate) fn whole_words_of(range: &Range<u64>) -> Range<u64> {
    range.start.div_ceil(BITS)..range.end / BITS
}

/// The numbers of the bits set in word `word`, over all words.
#[inline]
pub(crate) fn bits_of(word: u64, bits: u64) -> impl Iterator<Item = u64> {
    let rest = |bits: &u64| Some(bits & (bits - 1)).filter(|bits| *bits != 0);
    std::iter::successors(Some(bits).filter(|bits| *bits != 0), rest)
        .map(move |bits| word * BITS + u64::from(bits.trailing_zeros()))
}

/// The runs of neighbouring pages in a bitmap's words, in ascending order. `words` gives the words
/// that may be non-zero in ascending order, each with its number: word n has the pages from 64 n
/// on, the lowest bit for the lowest page.
///
/// ```
/// let words = [(0, 1 << 63), (1, 0b1011), (5, 0)];
/// assert!(ram_block::runs(words.into_iter()).eq([63..66, 67..68]));
/// ```
pub fn runs(words: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = Range<u64>> {
    let mut words = words.filter(|(_, bits)| *bits != 0).peekable();
    let mut current: Option<(u64, u64)> = None;
    std::iter::from_fn(move || {
        let (word, bits) = current.take().or_else(|| words.next())?;
        let first = bits.trailing_zeros();
        let ones = (!(bits >> first)).trailing_zeros();
        let start = word * BITS + u64::from(first);
        let mut end = start + u64::from(ones);
        let mut rest =
            if first + ones == u64::BITS { 0 } else { bits >> (first + ones) << (first + ones) };
        let mut at = word;
        // A run that reaches the end of its word may go on in the next.
        while end == (at + 1) * BITS {
            let Some((next, bits)) = words.next_if(|(next, _)| *next == at + 1) else { break };
            let ones = (!bits).trailing_zeros();
            end += u64::from(ones);
            rest = if ones == u64::BITS { 0 } else { bits >> ones << ones };
            at = next;
        }
        if rest != 0 {
            current = Some((at, rest));
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_exact() {
        assert_eq!(mask_within(0, &(0..64)), u64::MAX);
        assert_eq!(mask_within(0, &(3..3)), 0);
        assert_eq!(mask_within(1, &(0..64)), 0);
        assert_eq!(mask_within(1, &(65..200)), u64::MAX << 1);
        assert_eq!(mask_within(0, &(63..64)), 1 << 63);
    }
}
