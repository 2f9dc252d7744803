//! Which views a space has had, and where the last ones differ.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Moved ranges that are kept; who has missed more looks at everything again.
const KEPT: usize = 16;

/// How many views a space has published, and which addresses the last of them moved.
#[derive(Debug, Default)]
pub(crate) struct Generation<N = AtomicU64> {
    number: N,
    moved: Mutex<Moved>,
}

/// An atomic number, or a model's.
pub(crate) trait Number {
    fn load(&self) -> u64;
    fn store(&self, value: u64);
}

impl Number for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct Moved {
    /// The last view of which it is not known what moved.
    unknown: u64,
    /// First and last address, with the number of the view that moved them; ascending.
    ranges: VecDeque<(u64, (u64, u64))>,
}

/// What a commit changed of a space.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent<'a> {
    /// Anything.
    All,
    /// What these addresses show, from the first to the last of each.
    Ranges(&'a [(u64, u64)]),
}

impl<N: Number> Generation<N> {
    /// The number of the current view: a view that is loaded after it is as late or later.
    #[inline(always)]
    pub(crate) fn number(&self) -> u64 {
        self.number.load()
    }

    /// To be called after a view was published, by one thread at a time.
    pub(crate) fn advance(&self, extent: Extent<'_>) {
        let next = self.number.load() + 1;
        {
            let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            let Moved { unknown, ranges: kept } = &mut *moved;
            match extent {
                Extent::Ranges(ranges) if ranges.len() <= KEPT => {
                    let too_many = (kept.len() + ranges.len()).saturating_sub(KEPT);
                    kept.drain(..too_many).for_each(|(number, _)| *unknown = number);
                    kept.extend(ranges.iter().map(|range| (next, *range)));
                }
                Extent::All | Extent::Ranges(_) => {
                    kept.clear();
                    *unknown = next;
                }
            }
        }
        // After the view and the ranges: who reads the new number finds both, or later ones.
        self.number.store(next);
    }

    /// Calls `each` with the first and last address of what moved after view number `since`;
    /// returns whether that is all that did.
    pub(crate) fn moved_since(&self, since: u64, mut each: impl FnMut(u64, u64)) -> bool {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.unknown > since {
            return false;
        }
        let later = moved.ranges.iter().rev().take_while(|(number, _)| *number > since);
        later.for_each(|(_, (first, last))| each(*first, *last));
        true
    }
}

#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a list of everything that ever moved.
        #[test]
        fn nothing_that_moved_is_missed(
            commits in prop::collection::vec(
                prop::option::weighted(0.9, prop::collection::vec((0..9_u64, 0..9_u64), 0..6)),
                1..40,
            ),
        ) {
            let generation = Generation::<AtomicU64>::default();
            for commit in &commits {
                generation.advance(commit.as_deref().map_or(Extent::All, Extent::Ranges));
            }
            prop_assert_eq!(generation.number(), commits.len() as u64);
            for since in 0..=commits.len() {
                let mut moved = Vec::new();
                let is_all =
                    generation.moved_since(since as u64, |first, last| moved.push((first, last)));
                let later = &commits[since..];
                let expected = later.iter().flatten().flatten().rev().copied();
                let kept = later.iter().flatten().map(Vec::len).sum::<usize>();
                if is_all {
                    prop_assert!(later.iter().all(Option::is_some));
                    prop_assert_eq!(moved, expected.collect::<Vec<_>>());
                } else {
                    prop_assert!(later.iter().any(Option::is_none) || kept + 5 > KEPT);
                }
            }
        }
    }
}
