//! The discarded parts of a private copy of a file.
//!
//! What is discarded must not show the file's bytes again, so anonymous memory is mapped in its
//! place. That splits the file's mapping in three, and a process has 65,530 mappings
//! (`vm.max_map_count`): a guest that discards every other page could use them up for the whole
//! process, which could then create no thread and allocate no memory. So there are [`MAX_HOLES`]
//! such *holes* at most. A discard that adjoins a hole extends it, and the kernel joins the two
//! mappings; if there are no more holes, anything else is zeroed in place, and its memory is kept.

use std::collections::BTreeMap;
use std::ops::Range;

/// How many holes there may be, with two mappings each.
pub(crate) const MAX_HOLES: usize = 1024;

/// The holes, by their starts, none of which touch.
#[derive(Debug, Default)]
pub(super) struct Holes {
    holes: BTreeMap<usize, Hole>,
    /// The pieces of all holes together.
    pieces: usize,
}

#[derive(Clone, Copy, Debug)]
struct Hole {
    end: usize,
    /// How many holes have grown together. The kernel is certain to join a new mapping to one
    /// neighbour, but not two neighbours that both have pages already (their `anon_vma` differs):
    /// so these still count, until one mapping replaces them all.
    pieces: usize,
}

impl Holes {
    /// The holes that touch or overlap `bytes`, in descending order.
    fn touching(&self, bytes: &Range<usize>) -> impl Iterator<Item = (usize, Hole)> + use<'_> {
        let start = bytes.start;
        let before = self.holes.range(..=bytes.end).rev();
        before.map(|(at, hole)| (*at, *hole)).take_while(move |(_, hole)| hole.end >= start)
    }

    /// Splits `bytes` into parts, in ascending order; for each, whether it is a hole already.
    pub(super) fn parts(&self, bytes: &Range<usize>) -> Vec<(Range<usize>, bool)> {
        let mut parts = Vec::new();
        let mut end = bytes.end;
        for (start, hole) in self.touching(bytes) {
            let inside = start.max(bytes.start)..hole.end.min(bytes.end);
            if inside.is_empty() {
                continue;
            }
            parts.push((inside.end..end, false));
            end = inside.start;
            parts.push((inside, true));
        }
        parts.push((bytes.start..end, false));
        parts.retain(|(part, _)| !part.is_empty());
        parts.reverse();
        parts
    }

    /// Whether all of `bytes` is a hole already.
    pub(super) fn contains(&self, bytes: &Range<usize>) -> bool {
        self.touching(bytes).any(|(start, hole)| start <= bytes.start && bytes.end <= hole.end)
    }

    /// Whether the limit allows one mapping in the place of `bytes`.
    pub(super) fn has_room(&self, bytes: &Range<usize>) -> bool {
        let mut gone = 0;
        for (start, hole) in self.touching(bytes) {
            if !is_inside(start, hole, bytes) {
                return true;
            }
            gone += hole.pieces;
        }
        self.pieces - gone < MAX_HOLES
    }

    /// Notes that there is one mapping in the place of `bytes` from now on.
    pub(super) fn add(&mut self, bytes: Range<usize>) {
        let found: Vec<_> = self.touching(&bytes).collect();
        let mut joined = Hole { end: bytes.end, pieces: 0 };
        let mut start = bytes.start;
        for (at, hole) in found {
            self.holes.remove(&at);
            self.pieces -= hole.pieces;
            if !is_inside(at, hole, &bytes) {
                joined.end = joined.end.max(hole.end);
                joined.pieces += hole.pieces;
                start = start.min(at);
            }
        }
        joined.pieces = joined.pieces.max(1);
        self.pieces += joined.pieces;
        self.holes.insert(start, joined);
    }
}

/// Whether `bytes` replaces the hole from `start` on, rather than extends it.
fn is_inside(start: usize, hole: Hole, bytes: &Range<usize>) -> bool {
    bytes.start <= start && hole.end <= bytes.end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_that_touch_are_one_and_count_as_they_came() {
        let mut holes = Holes::default();
        for n in 0..MAX_HOLES {
            assert!(holes.has_room(&(4 * n..4 * n + 1)));
            holes.add(4 * n..4 * n + 1);
        }
        assert!(!holes.has_room(&(2..3)), "another one");
        assert!(holes.has_room(&(1..2)) && holes.has_room(&(3..4)), "what adjoins one");
        holes.add(1..4);
        assert_eq!((holes.holes.len(), holes.pieces), (MAX_HOLES - 1, MAX_HOLES));
        assert!(!holes.has_room(&(6..7)), "two that are one have two mappings");
        assert!(holes.has_room(&(7..14)), "in the place of two");
        holes.add(7..14);
        assert_eq!((holes.holes.len(), holes.pieces), (MAX_HOLES - 2, MAX_HOLES - 1));
        assert!(holes.has_room(&(6..7)) && holes.contains(&(8..14)) && !holes.contains(&(6..8)));
        assert_eq!(holes.parts(&(0..10)), [(0..5, true), (5..7, false), (7..10, true)]);
    }

    proptest! {
        /// Against a list of bytes.
        #[test]
        fn parts_are_those_of_a_list(
            added in prop::collection::vec((0..100usize, 1..9usize), 0..30),
            start in 0..100usize, len in 0..30usize,
        ) {
            let (mut holes, mut oracle) = (Holes::default(), [false; 140]);
            for (start, len) in added {
                holes.add(start..start + len);
                oracle[start..start + len].fill(true);
            }
            let mut at = start;
            for (part, hole) in holes.parts(&(start..start + len)) {
                prop_assert!(part.start == at && !part.is_empty());
                prop_assert!(oracle[part.clone()].iter().all(|is| *is == hole));
                at = part.end;
            }
            prop_assert_eq!(at, start + len);
            let all = start..start + len;
            let are_holes = oracle[all.clone()].iter().all(|is| *is);
            prop_assert!(len == 0 || holes.contains(&all) == are_holes);
            let runs = oracle.windows(2).filter(|pair| pair[1] && !pair[0]).count();
            prop_assert_eq!(holes.holes.len(), runs + usize::from(oracle[0]));
        }
    }
}
