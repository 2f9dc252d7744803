//! A set of pages that one thread at a time writes: plain words, and a summary above them.
//!
//! A *leaf* holds the bits of 64 pages, a summary bit stands for each leaf that may be non-zero, a
//! top bit for each summary word. A *chunk* is the 64 leaves of one summary word (4,096 pages), a
//! *granule* the 64 chunks of one top word (262,144 pages). A chunk of which all pages are in the
//! set, as all are when a log or a migration starts, is one bit beside its top bit, and its leaves
//! are not touched.
//!
//! Each client has one. A locked instruction costs about as much as 16 plain loads, so a merge of
//! many dirty pages into an atomic bitmap is bound by its read-modify-writes, however fast it
//! scans. KVM's words come from one thread at a time, though. They go here, under the block's lock
//! (that is what `&mut` means then), and are taken under the same lock by a harvest, which first
//! puts here what was marked in the atomic [`Bitmap`](crate::bitmap::atomic::Bitmap).

use std::io;
use std::ops::Range;

use crate::bitmap::bits::{BITS, GRANULE, bits_of, mask_within, whole_words_of, words_of};
use crate::bitmap::simd::{self, CHUNK, Chunk};
use crate::bitmap::word::Owned;
use crate::page::{allocation, index};
use crate::sys::mapping::prefer_huge_pages;

/// Pages of a chunk.
const CHUNK_PAGES: u64 = BITS * BITS;

/// A consumer's own set of a block's pages: those that it has still to deal with, for example.
///
/// What it costs is what is in it, not how many pages there could be: a set of 16 TiB that nothing
/// was put in has no memory, a full one a few hundred KiB. Its memory is kept until it is dropped:
/// one that was emptied still has a bit for each page of every 4,096 of which it held a part, or
/// which [`take_word`](Self::take_word) took in words (512 MiB, if it was full of 16 TiB). Filled
/// from a log by [`DirtyClaim::move_to`](crate::DirtyClaim::move_to).
///
/// ```
/// use ram_block::PageSet;
///
/// let mut pending = PageSet::new(1 << 32)?; // 16 TiB of 4 KiB pages
/// pending.insert(0..1 << 32);
/// pending.insert(70..71);
/// assert!(pending.contains(1 << 31));
/// assert_eq!(pending.take_word(1), Some((1, u64::MAX))); // pages 64 to 127
/// assert!(!pending.contains(70) && pending.contains(63));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct PageSet {
    leaves: Owned,
    summary: Owned,
    top: Owned,
    /// A bit for each chunk, as in `top`: all its pages are in the set, whatever its leaves are.
    full: Owned,
}

impl PageSet {
    /// An empty set with room for `pages` pages.
    ///
    /// # Errors
    ///
    /// If the host has no addresses for it, or the process may not lock as much
    /// (`RLIMIT_MEMLOCK`, after `mlockall`).
    pub fn new(pages: u64) -> io::Result<Self> {
        // Mappings, not vectors: many allocators write the zeros of `vec![0; n]`, which for 4 TiB
        // of 4 KiB pages makes 130 MiB of clean bits resident.
        let summary = allocation(pages.div_ceil(BITS).div_ceil(BITS))?;
        let leaves = summary.checked_mul(CHUNK).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut leaves = Owned::zeroed(leaves)?;
        prefer_huge_pages(&mut leaves);
        Ok(Self {
            leaves,
            summary: Owned::zeroed(summary)?,
            top: Owned::zeroed(summary.div_ceil(CHUNK))?,
            full: Owned::zeroed(summary.div_ceil(CHUNK))?,
        })
    }

    /// How many pages there is room for, rounded up to a multiple of 4,096.
    pub(crate) fn room(&self) -> u64 {
        self.leaves.len() as u64 * BITS
    }

    /// Inserts `pages`, which must be within the room that the set was made with.
    ///
    /// # Panics
    ///
    /// If there is no room for them.
    pub fn insert(&mut self, pages: Range<u64>) {
        let room = self.room();
        assert!(pages.is_empty() || pages.end <= room, "pages {pages:?} in a set of {room}");
        for chunk in words_of(&words_of(&pages)) {
            let whole = chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES;
            if pages.start <= whole.start && whole.end <= pages.end {
                self.fill_chunk(index(chunk));
                continue;
            }
            let part = pages.start.max(whole.start)..pages.end.min(whole.end);
            for leaf in words_of(&part) {
                self.insert_word(leaf, mask_within(leaf, &part));
            }
        }
    }

    /// Inserts the pages of one word; returns how many are new.
    #[inline]
    pub(crate) fn insert_word(&mut self, word: u64, bits: u64) -> u64 {
        let chunk = word / BITS;
        if bits == 0 || self.is_full(chunk) {
            return 0;
        }
        let leaf = &mut self.leaves[index(word)];
        let new = bits & !*leaf;
        *leaf |= bits;
        self.summary[index(chunk)] |= 1 << (word % BITS);
        self.top[index(chunk / BITS)] |= 1 << (chunk % BITS);
        u64::from(new.count_ones())
    }

    /// Takes all pages, word by word in ascending order, as [`take_word`](Self::take_word) does.
    /// Those of words that were not asked for stay.
    ///
    /// ```
    /// let mut pages = ram_block::PageSet::new(1 << 20)?;
    /// pages.insert(62..66);
    /// assert!(pages.drain_words().eq([(0, 0b11 << 62), (1, 0b11)]));
    /// assert!(!pages.contains(64));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn drain_words(&mut self) -> impl Iterator<Item = (u64, u64)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let taken = self.take_word(from)?;
            from = taken.0 + 1;
            Some(taken)
        })
    }

    /// Takes the pages of the first word from number `from` on that has any: the word's number, and
    /// a bit for each page, the lowest bit for page 64 times that number. Costs a step for each
    /// 262,144 pages (1 GiB of 4 KiB pages) of which none is in the set, and a few for what is
    /// taken.
    pub fn take_word(&mut self, from: u64) -> Option<(u64, u64)> {
        let mut chunk = from / BITS;
        loop {
            chunk = self.next_chunk(chunk)?;
            if self.take_full(chunk) {
                self.words_of_chunk(chunk).fill(u64::MAX);
                self.summary[index(chunk)] = u64::MAX;
            }
            let summary = &mut self.summary[index(chunk)];
            let first = (chunk * BITS).max(from);
            for word in bits_of(chunk, *summary & mask_within(chunk, &(first..u64::MAX))) {
                *summary &= !(1 << (word % BITS));
                let bits = std::mem::take(&mut self.leaves[index(word)]);
                if *summary == 0 {
                    self.top[index(chunk / BITS)] &= !(1 << (chunk % BITS));
                }
                if bits != 0 {
                    return Some((word, bits));
                }
            }
            chunk += 1;
        }
    }

    /// The first chunk from number `from` on that may have a page.
    fn next_chunk(&self, from: u64) -> Option<u64> {
        let first = from / BITS;
        let here = self.top.get(index(first))? & u64::MAX << (from % BITS);
        if here != 0 {
            return Some(first * BITS + u64::from(here.trailing_zeros()));
        }
        let rest = &self.top[index(first) + 1..];
        let at = rest.iter().position(|top| *top != 0)?;
        Some((first + 1 + at as u64) * BITS + u64::from(rest[at].trailing_zeros()))
    }

    fn is_full(&self, chunk: u64) -> bool {
        self.full[index(chunk / BITS)] >> (chunk % BITS) & 1 != 0
    }

    /// Inserts all 4,096 pages of chunk `chunk`.
    pub(crate) fn fill_chunk(&mut self, chunk: usize) {
        self.full[chunk / 64] |= 1 << (chunk % 64);
        self.top[chunk / 64] |= 1 << (chunk % 64);
    }

    /// Whether all pages of chunk `chunk` are in the set by its bit in `full`, which is cleared.
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
            let full = self.is_full(chunk);
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

    /// Moves the pages of `pages`, which lie in one granule, into `into`; returns how many are new
    /// there.
    pub(crate) fn move_to(&mut self, pages: &Range<u64>, into: &mut Self) -> u64 {
        let mut new = 0;
        for (chunk, whole) in self.dirty_chunks(pages) {
            let (at, summary) = (index(chunk) * CHUNK, self.summary[index(chunk)]);
            if whole && self.is_full(chunk) {
                new += CHUNK_PAGES - into.count_of_chunk(chunk);
                into.fill_chunk(index(chunk));
                self.take_whole_chunk(chunk, &mut |_, _| ());
            } else if whole && into.is_full(chunk) {
                self.take_whole_chunk(chunk, &mut |_, _| ());
            } else if whole && summary.count_ones() > simd::MAX_SINGLE_WORDS {
                let from = self.leaves[at..].first_chunk_mut();
                if let Some((from, into)) = from.zip(into.leaves[at..].first_chunk_mut()) {
                    new += simd::move_chunk(from, into);
                }
                into.summary[index(chunk)] |= summary;
                into.top[index(chunk / BITS)] |= 1 << (chunk % BITS);
                self.summary[index(chunk)] = 0;
                self.top[index(chunk / BITS)] &= !(1 << (chunk % BITS));
            } else if whole {
                self.take_whole_chunk(chunk, &mut |word, bits| new += into.insert_word(word, bits));
            } else {
                self.take_part(chunk, pages, &mut |word, bits| new += into.insert_word(word, bits));
            }
        }
        new
    }

    /// How many pages of a chunk are in the set.
    fn count_of_chunk(&self, chunk: u64) -> u64 {
        if self.is_full(chunk) {
            return CHUNK_PAGES;
        }
        let leaves = bits_of(chunk, self.summary[index(chunk)]);
        leaves.map(|leaf| u64::from(self.leaves[index(leaf)].count_ones())).sum()
    }

    /// Whether `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        let leaf = self.leaves.get(index(page / BITS));
        leaf.is_some_and(|leaf| self.is_full(page / CHUNK_PAGES) || leaf >> (page % BITS) & 1 != 0)
    }
}

#[cfg(test)]
mod tests;
