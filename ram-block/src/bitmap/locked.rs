//! The part of a client's bitmap that only the synchronizer writes.
//!
//! A locked instruction costs about as much as 16 plain loads, so a merge of many
//! dirty pages into an atomic bitmap is bound by its read-modify-writes, however fast
//! it scans. KVM's words come from one thread at a time, though. They go here: plain
//! words, OR-ed under the block's lock (that is what `&mut` means below), and taken
//! under the same lock by a harvest, which joins them with what others marked in the
//! atomic [`Bitmap`](crate::bitmap::atomic::Bitmap).
//!
//! The levels are the same: a summary bit for each word, a top bit for each summary
//! word. A *chunk* is the 64 words of one summary word (4,096 pages), a *granule* the
//! 64 chunks of one top word (262,144 pages), which is what is done under one lock.
//! A chunk of which all pages are dirty, as all are when a log starts, is one bit beside
//! its top bit, and its words are not touched.

use std::io;
use std::ops::Range;

use crate::bitmap::bits::{BITS, GRANULE, bits_of, mask_within, whole_words_of, words_of};
use crate::bitmap::simd::{self, CHUNK, Chunk};
use crate::bitmap::word::Owned;
use crate::page::index;
use crate::sys::mapping::prefer_huge_pages;

/// Plain words, zero, not yet backed by memory.
#[derive(Debug)]
pub(crate) struct LockedBitmap {
    leaves: Owned,
    summary: Owned,
    top: Owned,
    /// A bit for each chunk, as in `top`: all its pages are dirty, whatever its words are.
    full: Owned,
}

impl LockedBitmap {
    /// A clean bitmap of `pages` pages, if the operating system has the addresses.
    ///
    /// Mappings, not vectors: many allocators write the zeros of `vec![0; n]`, which for 4 TiB
    /// of 4 KiB pages makes 130 MiB of clean bits resident.
    pub(crate) fn new(pages: u64) -> io::Result<Self> {
        let summary = pages.div_ceil(BITS).div_ceil(BITS);
        let leaves = index(summary).checked_mul(CHUNK).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut leaves = Owned::zeroed(leaves)?;
        prefer_huge_pages(&mut leaves);
        Ok(Self {
            leaves,
            summary: Owned::zeroed(index(summary))?,
            top: Owned::zeroed(index(summary.div_ceil(BITS)))?,
            full: Owned::zeroed(index(summary.div_ceil(BITS)))?,
        })
    }

    /// Marks all 4,096 pages of chunk `chunk`.
    pub(crate) fn fill_chunk(&mut self, chunk: usize) {
        self.full[chunk / 64] |= 1 << (chunk % 64);
        self.top[chunk / 64] |= 1 << (chunk % 64);
    }

    /// Whether all pages of chunk `chunk` are dirty by its bit in `full`, which is cleared.
    fn take_full(&mut self, chunk: u64) -> bool {
        let (full, bit) = (&mut self.full[index(chunk / BITS)], 1 << (chunk % BITS));
        let was_full = *full & bit != 0;
        *full &= !bit;
        was_full
    }

    /// The words of chunk `chunk`.
    fn words_of_chunk(&mut self, chunk: u64) -> &mut [u64] {
        &mut self.leaves[index(chunk) * CHUNK..(index(chunk) + 1) * CHUNK]
    }

    /// ORs `words` into chunk `chunk`; `nonzero` has a bit for each of them that is not
    /// zero.
    pub(crate) fn merge_chunk(&mut self, chunk: usize, words: &Chunk, nonzero: u64) {
        let leaves = &mut self.leaves[chunk * CHUNK..(chunk + 1) * CHUNK];
        if nonzero.count_ones() <= simd::MAX_SINGLE_WORDS {
            for n in bits_of(0, nonzero).map(index) {
                leaves[n] |= words[n];
            }
        } else {
            simd::or(leaves, words);
        }
        self.summary[chunk] |= nonzero;
        self.top[chunk / 64] |= 1 << (chunk % 64);
    }

    /// Prefetches the lines of chunk `chunk` that a merge of its words `nonzero` will write.
    #[inline]
    pub(crate) fn prefetch_chunk(&self, chunk: usize, nonzero: u64) {
        if nonzero.count_ones() <= simd::MAX_SINGLE_WORDS {
            for n in bits_of(0, nonzero).map(index) {
                simd::prefetch(&self.leaves, chunk * CHUNK + n);
            }
        } else {
            for n in (0..CHUNK).step_by(8) {
                simd::prefetch(&self.leaves, chunk * CHUNK + n);
            }
        }
    }

    /// As [`prefetch_chunk`](Self::prefetch_chunk), for a harvest of all chunks of
    /// `pages`, which lie in one granule, into a bitmap that starts at word `base`.
    fn prefetch(&self, pages: &Range<u64>, base: u64, into: &[u64]) {
        for (chunk, _) in self.dirty_chunks(pages) {
            let summary = self.summary[index(chunk)];
            if summary.count_ones() <= simd::MAX_SINGLE_WORDS {
                for leaf in bits_of(chunk, summary) {
                    simd::prefetch(&self.leaves, index(leaf));
                    simd::prefetch(into, index(leaf.wrapping_sub(base)));
                }
            }
        }
    }

    /// The first granule in `pages` that may have a dirty page, cut to `pages`.
    pub(crate) fn dirty_granule(&self, pages: &Range<u64>) -> Option<Range<u64>> {
        if pages.is_empty() {
            return None;
        }
        let granules = pages.start / GRANULE..pages.end.div_ceil(GRANULE);
        let tops = &self.top[index(granules.start)..index(granules.end)];
        let found = granules.start + tops.iter().position(|top| *top != 0)? as u64;
        let start = (found * GRANULE).max(pages.start);
        Some(start..((found + 1) * GRANULE).min(pages.end))
    }

    /// The chunks that may be dirty and overlap `pages`, which lie in one granule; for each,
    /// whether all its pages are among `pages`.
    fn dirty_chunks(&self, pages: &Range<u64>) -> impl Iterator<Item = (u64, bool)> + use<> {
        let chunks = words_of(&words_of(pages));
        let whole = whole_words_of(&whole_words_of(pages));
        let top = chunks.start / BITS;
        let found = self.top[index(top)] & mask_within(top, &chunks);
        bits_of(top, found).map(move |chunk| (chunk, whole.contains(&chunk)))
    }

    /// Clears the bits of `pages`, which lie in one granule, and hands each non-zero
    /// word of them to `sink`, in ascending order, as (word number, bits).
    pub(crate) fn take(&mut self, pages: &Range<u64>, mut sink: impl FnMut(u64, u64)) {
        self.prefetch(pages, 0, &[]);
        for (chunk, whole) in self.dirty_chunks(pages) {
            if whole {
                self.take_whole_chunk(chunk, &mut sink);
            } else {
                self.take_part(chunk, pages, &mut sink);
            }
        }
    }

    #[inline]
    fn take_whole_chunk(&mut self, chunk: u64, sink: &mut impl FnMut(u64, u64)) {
        let full = self.take_full(chunk);
        let found = std::mem::take(&mut self.summary[index(chunk)]);
        self.top[index(chunk / BITS)] &= !(1 << (chunk % BITS));
        let leaves = self.words_of_chunk(chunk);
        for leaf in bits_of(0, found) {
            let bits = std::mem::take(&mut leaves[index(leaf)]);
            if bits != 0 && !full {
                sink(chunk * BITS + leaf, bits);
            }
        }
        if full {
            (chunk * BITS..(chunk + 1) * BITS).for_each(|word| sink(word, u64::MAX));
        }
    }

    fn take_part(&mut self, chunk: u64, pages: &Range<u64>, sink: &mut impl FnMut(u64, u64)) {
        if self.take_full(chunk) {
            self.words_of_chunk(chunk).fill(u64::MAX);
            self.summary[index(chunk)] = u64::MAX;
        }
        let summary = &mut self.summary[index(chunk)];
        let found = *summary & mask_within(chunk, &words_of(pages));
        *summary &= !mask_within(chunk, &whole_words_of(pages));
        if *summary == 0 {
            self.top[index(chunk / BITS)] &= !(1 << (chunk % BITS));
        }
        for leaf in bits_of(chunk, found) {
            let mask = mask_within(leaf, pages);
            let word = &mut self.leaves[index(leaf)];
            let bits = *word & mask;
            *word &= !mask;
            if bits != 0 {
                sink(leaf, bits);
            }
        }
    }

    /// Moves the bits of `pages`, which lie in one granule, into `into`, word 0 of which is word
    /// `base` of the bitmap; returns how many of its bits are new. Calls `noted` with the number of
    /// each chunk that may be dirty, and with a bit for each of its words that may be non-zero.
    pub(crate) fn move_into(
        &mut self,
        pages: &Range<u64>,
        base: u64,
        into: &mut [u64],
        mut noted: impl FnMut(u64, u64),
    ) -> u64 {
        let mut new = 0;
        self.prefetch(pages, base, into);
        for (chunk, whole) in self.dirty_chunks(pages) {
            let (at, summary) = (index(chunk) * CHUNK, self.summary[index(chunk)]);
            let full = self.full[index(chunk / BITS)] >> (chunk % BITS) & 1 != 0;
            noted(chunk, if full { u64::MAX } else { summary });
            if whole && (full || summary.count_ones() > simd::MAX_SINGLE_WORDS) {
                // A chunk that is cut off by the end of `into` is moved word by word.
                let target = index(chunk * BITS - base);
                let target =
                    into.get_mut(target..target + CHUNK).and_then(|words| words.try_into().ok());
                let leaves = (&mut self.leaves[at..at + CHUNK]).try_into().ok();
                if let Some((leaves, target)) = leaves.zip(target) {
                    if !full {
                        new += simd::move_chunk(leaves, target);
                        self.summary[index(chunk)] = 0;
                        self.top[index(chunk / BITS)] &= !(1 << (chunk % BITS));
                        continue;
                    }
                    new += CHUNK as u64 * BITS - simd::scan(target).1;
                    target.fill(u64::MAX);
                    self.take_whole_chunk(chunk, &mut |_, _| ());
                    continue;
                }
            }
            let mut put = |word: u64, bits: u64| {
                let slot = &mut into[index(word - base)];
                new += u64::from((bits & !*slot).count_ones());
                *slot |= bits;
            };
            if whole {
                self.take_whole_chunk(chunk, &mut put);
            } else {
                self.take_part(chunk, pages, &mut put);
            }
        }
        new
    }

    /// Whether `page` is marked.
    pub(crate) fn contains(&self, page: u64) -> bool {
        let chunk = page / (BITS * BITS);
        if self.full[index(chunk / BITS)] >> (chunk % BITS) & 1 != 0 {
            return true;
        }
        self.leaves[index(page / BITS)] >> (page % BITS) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::shifted::Shifted;
    use proptest::prelude::*;

    proptest! {
        /// Any merges and takes against a plain list of pages.
        #[test]
        fn behaves_as_a_list_of_pages(
            steps in prop::collection::vec(
                (0..300_000u64, 1..19_000u64, any::<bool>(), any::<u64>()), 1..40),
        ) {
            const PAGES: u64 = 320_000;
            let mut bulk = LockedBitmap::new(PAGES).unwrap();
            let mut oracle = vec![false; index(PAGES)];
            for (start, len, merge, seed) in steps {
                let range = start..start + len;
                if merge {
                    let words: Vec<u64> = (0..len.div_ceil(64))
                        .map(|n| if seed % 4 == 0 { u64::MAX }
                            else { (seed ^ n)
                                .wrapping_mul(0x9e37_79b9_7f4a_7c15) & seed.rotate_left(7) })
                        .collect();
                    let source = Shifted { words: &words, first: start, count: len };
                    for chunk in words_of(&source.destination()) {
                        let mut buffer = [0; CHUNK];
                        let words = source.chunk(chunk, &mut buffer);
                        match simd::scan(words) {
                            (_, 4096) => bulk.fill_chunk(index(chunk)),
                            (nonzero, _) => bulk.merge_chunk(index(chunk), words, nonzero),
                        }
                    }
                    for bit in 0..len {
                        oracle[index(start + bit)] |= words[index(bit / 64)] >> (bit % 64) & 1 != 0;
                    }
                } else {
                    let mut rest = range.clone();
                    let mut found = vec![false; index(PAGES)];
                    let mut private = vec![0u64; index(PAGES / 64)];
                    let mut new = 0;
                    while let Some(granule) = bulk.dirty_granule(&rest) {
                        if seed % 2 == 0 {
                            new += bulk.move_into(&granule, 0, &mut private, |_, _| ());
                        } else {
                            bulk.take(&granule, |word, bits| {
                                private[index(word)] |= bits;
                                new += u64::from(bits.count_ones());
                            });
                        }
                        rest.start = granule.end;
                    }
                    for (page, found) in (0u64..).zip(&mut found) {
                        *found = private[index(page / 64)] >> (page % 64) & 1 != 0;
                    }
                    prop_assert_eq!(new, found.iter().filter(|found| **found).count() as u64);
                    let range = index(range.start)..index(range.end);
                    let mut expected = vec![false; index(PAGES)];
                    expected[range.clone()].copy_from_slice(&oracle[range.clone()]);
                    oracle[range].fill(false);
                    prop_assert!(found == expected);
                }
            }
            prop_assert!((0..PAGES).all(|page| bulk.contains(page) == oracle[index(page)]));
        }
    }
}
