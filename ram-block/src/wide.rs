//! The inner loops over a chunk of 64 words, compiled twice: portably, and for x86-64
//! processors with AVX2 and POPCNT, which are chosen at run time.
//!
//! Both are the same source: the compiler makes wide instructions of it where it may.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a chunk: those below one summary word.
pub(crate) const CHUNK: usize = 64;

pub(crate) type Chunk = [u64; CHUNK];

/// Up to this many words of a chunk are dealt with one by one.
pub(crate) const FEW: u32 = 12;

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

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Chunk, move_body, or_body, scan_body};

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

/// Whether the processor has what `avx2` is compiled for.
#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

/// A bit for each word that is not zero, and how many bits all have.
#[inline]
pub(crate) fn scan(words: &Chunk) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as just asked.
        return unsafe { avx2::scan(words) };
    }
    scan_body(words)
}

/// ORs `from` into `into` and zeroes it; says how many bits of `into` are new.
#[inline]
pub(crate) fn move_chunk(from: &mut Chunk, into: &mut Chunk) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as just asked.
        return unsafe { avx2::move_chunk(from, into) };
    }
    move_body(from, into)
}

/// ORs `words` into the beginning of `into`.
#[inline]
pub(crate) fn or(into: &mut [u64], words: &Chunk) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions, as just asked.
        return unsafe { avx2::or(into, words) };
    }
    or_body(into, words);
}

/// Says that `words[at]` will be written soon. Only a matter of speed.
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

/// Stores all ones to each word, in any order, after everything before it.
#[inline]
pub(crate) fn fill_release(words: &[AtomicU64]) {
    #[cfg(target_arch = "x86_64")]
    if words.len() >= CHUNK {
        // SAFETY: the words are within one allocation, may be written through a shared
        // reference, and are aligned to 8 bytes, so that each of them is written at
        // once. The processor orders the stores of a string instruction after those
        // before it and before those after it, though not among each other. The
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
    }
}
