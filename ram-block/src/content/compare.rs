//! Comparing two pieces of memory in place, one of which may be a block's.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;

/// By how many lengths prefetches are ahead of comparisons, which then find all of a scan line in
/// the cache.
#[cfg(target_arch = "x86_64")]
const PREFETCH_DISTANCE: usize = 4;

/// Memory that others may store to, and known bytes of the same length.
struct Pair<'a> {
    memory: *const u8,
    known: &'a [u8],
}

impl Pair<'_> {
    /// Whether the `N` words at byte `at` are the same.
    ///
    /// # Safety
    ///
    /// They lie within.
    #[inline(always)]
    unsafe fn same<Word: Copy + Into<u64>, const N: usize>(&self, at: usize) -> bool {
        let [memory, known] = [self.memory, self.known.as_ptr()].map(|side| {
            // SAFETY: the words lie within both sides, as the caller guarantees; words have no
            // invalid bytes, and need not be aligned here. A concurrent store makes the result one
            // or the other.
            unsafe { side.wrapping_add(at).cast::<[Word; N]>().read_unaligned() }
        });
        let mut all = 0;
        for n in 0..N {
            all |= memory[n].into() ^ known[n].into();
        }
        all == 0
    }

    /// The end of the blocks of `N` words from `start` on that are the same.
    #[inline(always)]
    fn skip_start<Word: Copy + Into<u64>, const N: usize>(&self, mut start: usize) -> usize {
        let size = N * size_of::<Word>();
        // SAFETY: the block ends where there are bytes left.
        while start + size <= self.known.len() && unsafe { self.same::<Word, N>(start) } {
            start += size;
        }
        start
    }

    /// The start of the blocks of `N` words up to `end`, not before `start`, that are the same.
    #[inline(always)]
    fn skip_end<Word, const N: usize>(&self, start: usize, mut end: usize) -> usize
    where
        Word: Copy + Into<u64>,
    {
        let size = N * size_of::<Word>();
        // SAFETY: the block begins at `start` or behind, and `end` is never moved up.
        while start + size <= end && unsafe { self.same::<Word, N>(end - size) } {
            end -= size;
        }
        end
    }

    /// From the first byte that differs to the last, searched in ever smaller blocks from both
    /// ends.
    #[inline(always)]
    fn difference_body(&self) -> Range<usize> {
        let start = self.skip_start::<u64, 16>(0);
        let start = self.skip_start::<u64, 4>(start);
        let start = self.skip_start::<u8, 1>(start);
        let end = self.skip_end::<u64, 16>(start, self.known.len());
        let end = self.skip_end::<u64, 4>(start, end);
        start..self.skip_end::<u8, 1>(start, end)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn difference_avx2(&self) -> Range<usize> {
        self.difference_body()
    }

    fn difference(&self) -> Range<usize> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions, as was just checked.
            return unsafe { self.difference_avx2() };
        }
        self.difference_body()
    }

    /// Prefetches pairs that will be compared later. Affects speed only: of lines whose first and
    /// last bytes differ nothing else is read, so that comparing them would be nothing but waiting
    /// for memory.
    #[inline(always)]
    fn prefetch_later(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let len = self.known.len();
            let start = len.wrapping_mul(PREFETCH_DISTANCE);
            for at in [start, start.wrapping_add(len).wrapping_sub(1)] {
                for side in [self.memory, self.known.as_ptr()] {
                    // SAFETY: every x86-64 processor has the instruction, and it accesses
                    // nothing.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(side.wrapping_add(at).cast()) };
                }
            }
        }
    }
}

/// Which of the bytes of `memory` differ from those of `known`: from the first that does to the
/// last; empty if none does. Bytes of the longer slice beyond the other are not compared.
///
/// ```
/// assert_eq!(ram_block::difference(b"abcdef", b"axcdyf"), 1..5);
/// assert!(ram_block::difference(b"abc", b"abcdef").is_empty());
/// ```
pub fn difference(memory: &[u8], known: &[u8]) -> Range<usize> {
    let len = memory.len().min(known.len());
    Pair { memory: memory.as_ptr(), known: &known[..len] }.difference()
}

impl RamBlock {
    /// Which of the bytes at `offset` differ from `known`: from the first that does to the
    /// last, counted from `offset`; empty if none does.
    ///
    /// Reads the memory once and copies nothing: copying what differs afterwards costs no more than
    /// the copy. Concurrent stores are seen or not; they mark their pages, as always, so that a
    /// caller that takes bits first and then compares finds them the next time.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vram = ram_block::RamBlock::anonymous("vga.vram", 1 << 20)?;
    /// let mut copy = vec![0; 4096];
    /// vram.write(8192 + 100, &[1, 0, 2])?;
    /// let differing = vram.difference(8192, &copy)?;
    /// assert_eq!(differing, 100..103);
    /// vram.read(8192 + 100, &mut copy[differing])?;
    /// assert!(vram.difference(8192, &copy)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`].
    pub fn difference(&self, offset: u64, known: &[u8]) -> Result<Range<usize>, RamBlockError> {
        let memory = self.bytes(offset, known.len())?;
        let pair = Pair { memory: memory.as_ptr(), known };
        pair.prefetch_later();
        Ok(pair.difference())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_differs_is_from_the_first_byte_to_the_last(
            offset in 0..40u64,
            len in 0..2000usize,
            changes in prop::collection::vec((0..2000usize, any::<u8>()), 0..4),
        ) {
            let block = RamBlock::anonymous("ram", 1 << 16).unwrap();
            let memory: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            block.write(offset, &memory).unwrap();
            let mut known = memory.clone();
            for (at, value) in changes.into_iter().filter(|(at, _)| *at < len) {
                known[at] = value;
            }
            let differs = |at: &usize| known[*at] != memory[*at];
            let expected = match ((0..len).find(differs), (0..len).rfind(differs)) {
                (Some(first), Some(last)) => first..last + 1,
                _ => len..len,
            };
            prop_assert_eq!(&block.difference(offset, &known).unwrap(), &expected);
            prop_assert_eq!(difference(&memory, &known), expected);
        }
    }

    #[test]
    fn nothing_beyond_the_block_is_looked_at() {
        let block = RamBlock::anonymous("ram", 1 << 16).unwrap();
        assert_eq!(block.difference((1 << 16) - 3, &[0; 3]).unwrap(), 3..3);
        for (offset, len) in [((1 << 16) - 3, 4), (1 << 16, 1), (u64::MAX, 600)] {
            let refused = block.difference(offset, &vec![0; len]).unwrap_err();
            assert!(matches!(refused, RamBlockError::OutOfBounds { .. }));
        }
    }
}
