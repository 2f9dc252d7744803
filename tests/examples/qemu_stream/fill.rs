//! Contents that can be told again from a seed.

use clap::ValueEnum;

/// What a block is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fill {
    /// Nothing: memory that nobody touched
    Zero,
    /// Random bytes
    Random,
    /// Pages of one byte
    Repeated,
    /// Random, zero and repeated pages in turn
    Mixed,
}

/// Bytes of a page of it.
pub(crate) const PAGE: usize = 4096;

impl Fill {
    /// The page `number` of a block, if it is not zero.
    pub(crate) fn page(self, seed: u64, number: u64) -> Option<[u8; PAGE]> {
        let kind = match (self, number % 3) {
            (Fill::Mixed, 0) => Fill::Random,
            (Fill::Mixed, 1) => Fill::Zero,
            (Fill::Mixed, _) => Fill::Repeated,
            (fill, _) => fill,
        };
        match kind {
            Fill::Zero => None,
            Fill::Repeated => Some([number.to_le_bytes()[0] | 1; PAGE]),
            _ => {
                let mut page = [0; PAGE];
                let mut state = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for word in page.chunks_exact_mut(8) {
                    word.copy_from_slice(&split_mix(&mut state).to_le_bytes());
                }
                Some(page)
            }
        }
    }
}

/// The generator SplitMix64, of Steele, Lea and Flood (2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
