//! Which section an address is in.
//!
//! A binary search over the last addresses takes a step for each doubling of their
//! number, and each step waits for the one before. A table takes most of the steps away:
//! it is indexed by the address as a floating-point number of few bits (the place of its
//! highest bit, and some bits below that), so that it is as fine among devices of a page
//! in the first megabytes as among windows of gigabytes above. Between two entries few
//! sections are left to search.

use std::sync::Arc;

/// The last addresses of sections, in ascending order. Views with the same ones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct LookUp {
    lasts: Arc<[u64]>,
    /// How many bits below the highest one count.
    bits: u32,
    /// For each key the first section that reaches the lowest address with that key; one
    /// more at the end. Empty where there are few sections.
    table: Arc<[u32]>,
}

impl LookUp {
    pub(crate) fn new(lasts: Arc<[u64]>) -> Self {
        // The table costs a commit less than the sections do.
        let bits = match lasts.len() {
            0..16 => return Self { lasts, ..Self::default() },
            16..256 => 4,
            256..4096 => 6,
            _ => 8,
        };
        let keys = u64::from(64 - bits) << bits;
        let mut at = 0;
        let mut table: Vec<u32> = (0..keys)
            .map(|key| {
                let start = lowest(key, bits);
                while lasts.get(at).is_some_and(|last| *last < start) {
                    at += 1;
                }
                u32::try_from(at).unwrap_or(u32::MAX)
            })
            .collect();
        table.push(u32::try_from(lasts.len()).unwrap_or(u32::MAX));
        Self { lasts, bits, table: table.into() }
    }

    /// The number of the first section that ends at `address` or above it; one past the
    /// last if there is none.
    #[inline(always)]
    pub(crate) fn first_reaching(&self, address: u64) -> usize {
        if self.table.is_empty() {
            // So few that counting them all is faster than steps that wait for each other.
            return self.lasts.iter().map(|last| usize::from(*last < address)).sum();
        }
        let key = key(address, self.bits);
        let within = self.table[key] as usize..self.table[key + 1] as usize;
        within.start + self.lasts[within].partition_point(|last| *last < address)
    }
}

/// Ascending with the address. Addresses below 2^`bits` share the lowest keys.
#[inline(always)]
fn key(address: u64, bits: u32) -> usize {
    let address = address.max(1 << bits);
    let exponent = address.ilog2() - bits;
    let mantissa = address >> exponent & ((1 << bits) - 1);
    (exponent as usize) << bits | usize::try_from(mantissa).unwrap_or(0)
}

/// The lowest address with a key.
fn lowest(key: u64, bits: u32) -> u64 {
    match key {
        0 => 0,
        _ => ((1 << bits) | (key & ((1 << bits) - 1))) << (key >> bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_ascend_and_their_lowest_addresses_have_them() {
        for bits in [4, 6, 8] {
            for number in 0..u64::from(64 - bits) << bits {
                let start = lowest(number, bits);
                assert_eq!(key(start, bits) as u64, number);
                if number > 0 {
                    assert_eq!(key(start - 1, bits) as u64, number - 1);
                }
            }
            assert_eq!(key(u64::MAX, bits) as u64 + 1, u64::from(64 - bits) << bits);
        }
    }

    proptest! {
        /// With and without a table, everywhere near an end.
        #[test]
        fn a_look_up_is_a_search(
            lasts in prop::collection::btree_set((any::<u64>(), 0..64u32)
                .prop_map(|(at, by)| at >> by), 0..600),
            extra in any::<u64>(),
        ) {
            let lasts: Arc<[u64]> = lasts.into_iter().collect();
            let look_up = LookUp::new(lasts.clone());
            let near = |last: &u64| [last.wrapping_sub(1), *last, last.wrapping_add(1)];
            for address in lasts.iter().flat_map(near).chain([0, 1, extra, u64::MAX]) {
                let found = lasts.iter().position(|last| *last >= address).unwrap_or(lasts.len());
                prop_assert_eq!(look_up.first_reaching(address), found);
            }
        }
    }
}
