//! The inner loops over chunks of 64 words, compiled twice: portably, and for x86-64
//! processors with AVX2 and POPCNT, which are chosen at run time.
//!
//! Both are the same source: the compiler makes wide instructions of it where it may.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a chunk: those below one summary word.
pub(crate) const CHUNK: usize = 64;

pub(crate) type Chunk = [u64; CHUNK];

/// Up to this many words of a chunk are handled one by one.
pub(crate) const MAX_SINGLE_WORDS: u32 = 12;

#[inline(always)]
fn scan_body(words: &Chunk) -> (u64, u64) {
    let (mut nonzero, mut ones) = (0, 0);
    for (bit, word) in words.iter().enumerate() {
        nonzero |= u64::from(*word != 0) << bit;
        ones += u64::from(word.count_ones());
    }
    (nonzero, ones)
}

#[inline(always)]
fn move_body(from: &mut Chunk, into: &mut Chunk) -> u64 {
    let mut new = 0;
    for (from, into) in from.iter_mut().zip(into) {
        new += u64::from((*from & !*into).count_ones());
        *into |= *from;
        *from = 0;
    }
    new
}

#[inline(always)]
fn or_body(into: &mut [u64], words: &Chunk) {
    for (into, word) in into.iter_mut().zip(words) {
        *into |= word;
    }
}

#[inline(always)]
fn summarize_body(words: &[u64], summary: &mut [u64]) {
    let any = |chunk: &[u64]| u64::from(chunk.iter().fold(0, |all, word| all | word) != 0);
    for (words, summary) in words.chunks(CHUNK * 64).zip(summary) {
        let chunks = words.chunks_exact(CHUNK);
        let rest = chunks.remainder();
        *summary = any(rest) << (words.len() / CHUNK % 64);
        // Backwards: what was written last is in the nearest cache.
        for (bit, chunk) in chunks.enumerate().rev() {
            if let Ok(chunk) = <&Chunk>::try_from(chunk) {
                *summary |= any(chunk) << bit;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Chunk, move_body, or_body, scan_body, summarize_body};

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn summarize(words: &[u64], summary: &mut [u64]) {
        summarize_body(words, summary);
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) unsafe fn scan(words: &Chunk) -> (u64, u64) {
        scan_body(words)
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) unsafe fn move_chunk(from: &mut Chunk, into: &mut Chunk) -> u64 {
        move_body(from, into)
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) unsafe fn or(into: &mut [u64], words: &Chunk) {
        or_body(into, words);
    }
}

/// Whether the CPU has the features that module `avx2` is compiled for.
#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

/// A bit for each word that is not zero, and the number of set bits in all words.
#[inline]
pub(crate) fn scan(words: &Chunk) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as was just checked.
        return unsafe { avx2::scan(words) };
    }
    scan_body(words)
}

/// ORs `from` into `into` and zeroes it; returns how many bits of `into` are new.
#[inline]
pub(crate) fn move_chunk(from: &mut Chunk, into: &mut Chunk) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as was just checked.
        return unsafe { avx2::move_chunk(from, into) };
    }
    move_body(from, into)
}

/// ORs `words` into the beginning of `into`.
#[inline]
pub(crate) fn or(into: &mut [u64], words: &Chunk) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as was just checked.
        return unsafe { avx2::or(into, words) };
    }
    or_body(into, words);
}

/// Sets one bit of `summary` for each 64 of `words` that are not all zero, lowest bit first, and
/// clears the other bits: one word of `summary` for 4,096 words. The last group may be shorter;
/// surplus words on either side are left alone.
///
/// For accelerators that fetch a log: of one that is mostly clean this is most of the work beside
/// the kernel's, and bound by memory. The wide registers, which are chosen here, make a clean sync
/// of a slot of 8 GiB 8 to 12 % shorter, KVM's part included.
///
/// ```
/// let mut log = vec![0_u64; 200];
/// log[130] = 1 << 7;
/// let mut summary = [u64::MAX];
/// ram_block::summarize(&log, &mut summary);
/// assert_eq!(summary, [0b100]);
/// ```
#[inline]
pub fn summarize(words: &[u64], summary: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as was just checked.
        return unsafe { avx2::summarize(words, summary) };
    }
    summarize_body(words, summary);
}

/// Prefetches `words[at]`, which will be written soon. Affects speed only.
#[inline(always)]
pub(crate) fn prefetch(words: &[u64], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(word) = words.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, at);
}

/// Stores all ones to each word: in any order, but after everything before the call (release).
#[inline]
pub(crate) fn fill_release(words: &[AtomicU64]) {
    #[cfg(target_arch = "x86_64")]
    if words.len() >= CHUNK {
        // The processor orders the stores of a string instruction after those before it and
        // before those after it, though not among each other.
        // SAFETY: the words are within one allocation, may be written through a shared
        // reference, and are aligned to 8 bytes, so that each of them is written at once. The
        // direction flag is clear, as the ABI has it.
        unsafe {
            std::arch::asm!(
                "rep stosq",
                inout("rcx") words.len() => _,
                inout("rdi") words.as_ptr() => _,
                in("rax") u64::MAX,
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    words.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk() -> impl Strategy<Value = Chunk> {
        let word = prop_oneof![2 => Just(0), 1 => Just(u64::MAX), 2 => any::<u64>()];
        prop::collection::vec(word, 64).prop_map(|words| words.try_into().unwrap())
    }

    proptest! {
        /// What is chosen here does the same as the portable form.
        #[test]
        fn the_chosen_form_equals_the_portable_one(a in chunk(), b in chunk()) {
            prop_assert_eq!(scan(&a), scan_body(&a));
            let ((mut from, mut into), (mut from2, mut into2)) = ((a, b), (a, b));
            prop_assert_eq!(move_chunk(&mut from, &mut into), move_body(&mut from2, &mut into2));
            prop_assert_eq!((from, into), (from2, into2));
            let (mut into, mut into2) = (b, b);
            or(&mut into, &a);
            or_body(&mut into2, &a);
            prop_assert_eq!(into, into2);
        }

        #[test]
        fn a_summary_has_a_bit_for_each_chunk_with_a_bit(
            len in 0..10_000_usize,
            set in prop::collection::vec((0..10_000_usize, 0..64_u32), 0..8),
        ) {
            let mut words = vec![0; len];
            for (at, bit) in set.into_iter().filter(|(at, _)| *at < len) {
                words[at] |= 1 << bit;
            }
            let mut summaries = [[0x5a5a_u64; 4]; 2];
            summarize(&words, &mut summaries[0]);
            summarize_body(&words, &mut summaries[1]);
            for summary in summaries {
                for (n, word) in summary.iter().enumerate() {
                    for bit in 0..64 {
                        let chunk = words.chunks(CHUNK).nth(n * 64 + bit);
                        let kept = n >= len.div_ceil(CHUNK * 64) && 0x5a5a_u64 >> bit & 1 != 0;
                        let any = chunk.map_or(kept, |chunk| chunk.iter().any(|word| *word != 0));
                        prop_assert_eq!(word >> bit & 1 != 0, any, "bit {} of word {}", bit, n);
                    }
                }
            }
        }
    }
}
