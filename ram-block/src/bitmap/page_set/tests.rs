//! Sets of pages, and merges and harvests, against plain lists of pages.

use std::collections::BTreeSet;

use super::*;
use crate::bitmap::shifted::Shifted;
use proptest::prelude::*;

/// What a set is given, and what is asked of it.
#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    Words(u64, Vec<u64>),
    /// Takes so many words from this one on.
    Take(u64, usize),
    /// Moves these pages to the other set.
    Move(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![0..300u64, 4000..9000u64, GRANULE - 5000..GRANULE + 5000];
    let len = prop_oneof![0..200u64, Just(4096u64), 4096..20_000u64];
    let word = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    prop_oneof![
        (start.clone(), len.clone()).prop_map(|(start, len)| Step::Insert(start, len)),
        (start.clone(), prop::collection::vec(word, 1..100))
            .prop_map(|(start, words)| Step::Words(start / 64, words)),
        (start.clone(), 1..200usize).prop_map(|(start, count)| Step::Take(start / 64, count)),
        (start, len).prop_map(|(start, len)| Step::Move(start, len)),
    ]
}

/// Fewer on WebAssembly, which is slow.
const CASES: u32 = if cfg!(target_family = "wasm") { 8 } else { 48 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// Two sets, one of which is moved to the other, against sets of pages.
    #[test]
    fn behaves_as_a_set_of_pages(steps in prop::collection::vec(step(), 1..40)) {
        const PAGES: u64 = GRANULE + 26_000;
        let (mut set, mut other) = (PageSet::new(PAGES).unwrap(), PageSet::new(PAGES).unwrap());
        let (mut oracle, mut others) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Insert(start, len) => {
                    set.insert(start..start + len);
                    oracle.extend(start..start + len);
                }
                Step::Words(first, words) => {
                    for (word, bits) in (first..).zip(words) {
                        let pages = bits_of(word, bits).collect::<BTreeSet<_>>();
                        let new = pages.difference(&oracle).count() as u64;
                        prop_assert_eq!(set.insert_word(word, bits), new);
                        oracle.extend(pages);
                    }
                }
                Step::Take(from, count) => {
                    let mut next = from;
                    for _ in 0..count {
                        let first = oracle.range(next * 64..).next().map(|page| page / 64);
                        let taken = set.take_word(next);
                        prop_assert_eq!(taken.map(|(word, _)| word), first);
                        let Some((word, bits)) = taken else { break };
                        for page in word * 64..(word + 1) * 64 {
                            prop_assert_eq!(bits >> (page % 64) & 1 != 0, oracle.remove(&page));
                        }
                        next = word + 1;
                    }
                }
                Step::Move(start, len) => {
                    let (mut rest, mut new) = (start..start + len, 0);
                    while let Some(granule) = set.dirty_granule(&rest) {
                        new += set.move_to(&granule, &mut other);
                        rest.start = granule.end;
                    }
                    let moved: BTreeSet<u64> = oracle.range(start..start + len).copied()
                        .collect();
                    prop_assert_eq!(new, moved.difference(&others).count() as u64);
                    oracle.retain(|page| !moved.contains(page));
                    others.extend(moved);
                }
            }
        }
        prop_assert!((0..PAGES).all(|page| set.contains(page) == oracle.contains(&page)));
        prop_assert!((0..PAGES).all(|page| other.contains(page) == others.contains(&page)));
        prop_assert!(!set.contains(u64::MAX));
    }
}

proptest! {
    // WebAssembly reads no PROPTEST_CASES, and is slow.
    #![proptest_config(match cfg!(target_family = "wasm") {
        true => ProptestConfig::with_cases(16),
        false => ProptestConfig::default(),
    })]

    /// Any merges and takes against a plain list of pages.
    #[test]
    fn behaves_as_a_list_of_pages(
        steps in prop::collection::vec(
            (0..300_000u64, 1..19_000u64, any::<bool>(), any::<u64>()), 1..40),
    ) {
        const PAGES: u64 = 320_000;
        let mut set = PageSet::new(PAGES).unwrap();
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
                        (_, 4096) => set.fill_chunk(index(chunk)),
                        (nonzero, _) => set.merge_chunk(index(chunk), words, nonzero),
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
                while let Some(granule) = set.dirty_granule(&rest) {
                    if seed % 2 == 0 {
                        new += set.move_into(&granule, 0, &mut private, |_, _| ());
                    } else {
                        set.take(&granule, |word, bits| {
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
        prop_assert!((0..PAGES).all(|page| set.contains(page) == oracle[index(page)]));
    }
}

#[cfg(panic = "unwind")]
#[test]
fn what_there_is_no_room_for_is_not_inserted() {
    let mut set = PageSet::new(4096).unwrap();
    set.insert(5000..5000);
    for pages in [4096..8192, 4000..4097, 1 << 40..1 << 41] {
        let insert = std::panic::AssertUnwindSafe(|| set.insert(pages));
        assert!(std::panic::catch_unwind(insert).is_err());
    }
    assert_eq!(set.take_word(0), None);
}
