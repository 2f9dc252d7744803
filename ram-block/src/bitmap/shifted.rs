//! A bitmap that is merged at any offset, 64 pages at a time.

use std::ops::Range;

use crate::bitmap::bits::{BITS, mask_within, words_of};
use crate::bitmap::simd::{CHUNK, Chunk};
use crate::page::index;

/// A bitmap that starts at any page, read in the words and chunks of the bitmap that it is merged
/// into: bit 0 of `words` is page `first`, and only the first `count` bits are used.
#[derive(Clone, Copy)]
pub(crate) struct Shifted<'a> {
    pub(crate) words: &'a [u64],
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Shifted<'_> {
    /// The destination's words that get bits.
    pub(crate) fn destination(&self) -> Range<u64> {
        words_of(&(self.first..self.first + self.count))
    }

    /// One source word, without the bits past the end; zero outside.
    #[inline(always)]
    fn word(&self, n: u64) -> u64 {
        let word = self.words.get(index(n)).copied().unwrap_or(0);
        word & mask_within(n, &(0..self.count))
    }

    /// Word `n` of the destination.
    ///
    /// Combined from the two source words that overlap it.
    #[inline(always)]
    pub(crate) fn destination_word(&self, n: u64) -> u64 {
        let (shift, base) = (self.first % BITS, self.first / BITS);
        let mut word = 0;
        if n >= base {
            word = self.word(n - base) << shift;
        }
        if n > base {
            // A shift by 64 would overflow, so it is done in two steps.
            word |= (self.word(n - base - 1) >> 1) >> (BITS - 1 - shift);
        }
        word
    }

    /// Chunk `chunk` of the destination; borrowed from the source if its words are aligned alike.
    ///
    /// Never loops over bits, whatever the offset.
    #[inline(always)]
    pub(crate) fn chunk<'b>(&'b self, chunk: u64, buffer: &'b mut Chunk) -> &'b Chunk {
        let (shift, base) = (self.first % BITS, self.first / BITS);
        let start = chunk * BITS;
        let whole = self.count / BITS;
        if shift == 0 && start >= base && start - base + BITS <= whole {
            let from = index(start - base);
            if let Some(words) = self.words.get(from..from + CHUNK).and_then(|w| w.try_into().ok())
            {
                return words;
            }
        }
        for (n, word) in (start..).zip(buffer.iter_mut()) {
            *word = self.destination_word(n);
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), (0..64u32).prop_map(|n| 1 << n)]
    }

    proptest! {
        /// All 64 offsets for each set of random words and each cut-off, against the
        /// definition, bit by bit.
        #[test]
        fn a_shift_equals_the_bit_loop_at_every_offset(
            words in prop::collection::vec(word(), 1..150),
            base in 0..130u64,
            cut in 0..64u64,
        ) {
            let count = words.len() as u64 * BITS - cut;
            for shift in 0..BITS {
                let source = Shifted { words: &words, first: base * BITS + shift, count };
                let mut expected = vec![0u64; 5 * CHUNK];
                for bit in 0..count {
                    if words[index(bit / BITS)] >> (bit % BITS) & 1 != 0 {
                        let at = source.first + bit;
                        expected[index(at / BITS)] |= 1 << (at % BITS);
                    }
                }
                let mut merged = vec![0u64; 5 * CHUNK];
                for chunk in words_of(&source.destination()) {
                    let at = index(chunk) * CHUNK;
                    merged[at..at + CHUNK].copy_from_slice(source.chunk(chunk, &mut [0; CHUNK]));
                }
                prop_assert_eq!(&merged, &expected, "at offset {}", source.first);
            }
        }
    }
}
