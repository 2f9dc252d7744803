//! Merging a bitmap that starts anywhere, 64 pages at a time.
//!
//! KVM's log of a slot starts at bit 0; the slot may start at any page of its
//! block. Instead of falling back to bits when that page is not a multiple of
//! 64, each source word is shifted over the two destination words it meets.

use crate::bitmap::{BITS, mask_within};
use crate::page::index;

/// Calls `sink` with (destination word, bits) for each destination word that gets
/// bits when source bit 0 falls on destination bit `first`.
///
/// Only the first `count` source bits are looked at, whatever follows them.
/// `words` must hold at least `count` bits. Returns how many bits were set.
#[inline]
pub(crate) fn shift_merge(
    first: u64,
    count: u64,
    words: &[u64],
    mut sink: impl FnMut(u64, u64),
) -> u64 {
    let shift = first % BITS;
    let base = first / BITS;
    let valid = 0..count;
    let used = index(count.div_ceil(BITS));
    let mut set = 0;
    // What the previous source word pushed into the next destination word.
    let mut carry = 0;
    for (n, &word) in (0u64..).zip(&words[..used]) {
        if word | carry == 0 {
            continue;
        }
        let word = word & mask_within(n, &valid);
        set += u64::from(word.count_ones());
        let bits = word << shift | carry;
        // A shift by 64 is no shift at all, so that case is done in two steps.
        carry = (word >> 1) >> (BITS - 1 - shift);
        if bits != 0 {
            sink(base + n, bits);
        }
    }
    if carry != 0 {
        sink(base + used as u64, carry);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: bit by bit.
    fn naive(first: u64, count: u64, words: &[u64], destination: &mut [u64]) -> u64 {
        let mut set = 0;
        for bit in 0..count {
            if words[index(bit / BITS)] >> (bit % BITS) & 1 != 0 {
                let target = first + bit;
                destination[index(target / BITS)] |= 1 << (target % BITS);
                set += 1;
            }
        }
        set
    }

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), (0..64u32).prop_map(|n| 1 << n)]
    }

    proptest! {
        /// All 64 offsets for each set of random words and each cut-off.
        #[test]
        fn equals_the_bit_loop_at_every_offset(
            words in prop::collection::vec(word(), 1..9),
            base in 0..3u64,
            cut in 0..64u64,
        ) {
            let count = words.len() as u64 * BITS - cut;
            for shift in 0..BITS {
                let first = base * BITS + shift;
                let mut expected = vec![0; words.len() + 4];
                let expected_set = naive(first, count, &words, &mut expected);
                let mut merged = vec![0; words.len() + 4];
                let mut last = None;
                let set = shift_merge(first, count, &words, |word, bits| {
                    assert!(last < Some(word), "words come once each and in order");
                    last = Some(word);
                    merged[index(word)] |= bits;
                });
                prop_assert_eq!(&merged, &expected, "at offset {}", first);
                prop_assert_eq!(set, expected_set);
            }
        }
    }
}
