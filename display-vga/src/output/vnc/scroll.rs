//! Detects scrolls: lines that the viewer already has at another height.
//!
//! A console that scrolls changes nearly every pixel, but a viewer with CopyRect needs only the
//! new lines. Lines are compared by hashes; a match is verified byte by byte.

use std::collections::HashMap;

use crate::output::vnc::frame::Frame;
use crate::picture::surface::Rect;

/// The fewest lines and columns of an area for which detection is worth its cost.
const MIN_SIDE: u32 = 24;

/// Lines that were moved within their columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scroll {
    /// Their area now.
    pub(crate) to: Rect,
    /// The line at which the first of them was before.
    pub(crate) from: u32,
}

/// A hash of a line: different lines hardly ever have the same one.
fn hash(line: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(FACTOR).rotate_left(29);
    // With an odd number of pixels the last word is incomplete.
    let words = line.chunks_exact(8);
    let rest = words.remainder().iter().map(|byte| u64::from(*byte)).fold(FACTOR, mix);
    words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).fold(rest, mix)
}

/// Finds the longest scroll in `area` from `old` to `new`; `None` if it covers less than a quarter
/// of the lines that changed. The area must lie in both pictures.
pub(crate) fn find(old: &Frame, new: &Frame, area: &Rect) -> Option<Scroll> {
    if area.width < MIN_SIDE || area.height < MIN_SIDE {
        return None;
    }
    let hashes = |frame: &Frame| -> Vec<u64> {
        (area.y..area.bottom()).map(|y| hash(frame.line(area, y))).collect()
    };
    let (before, after) = (hashes(old), hashes(new));
    let changed = |y: usize| before[y] != after[y];

    // The position in `old` of each line that occurs there only once.
    let mut places: HashMap<u64, Option<usize>> = HashMap::new();
    for (y, hash) in before.iter().enumerate() {
        places.entry(*hash).and_modify(|place| *place = None).or_insert(Some(y));
    }
    let signed = |y: usize| isize::try_from(y).unwrap_or(isize::MAX);
    let mut votes: HashMap<isize, usize> = HashMap::new();
    for y in (0..after.len()).filter(|y| changed(*y)) {
        if let Some(Some(place)) = places.get(&after[y]) {
            *votes.entry(signed(*place) - signed(y)).or_default() += 1;
        }
    }
    let (shift, _) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;

    // The run of lines with that shift that has the most changed lines.
    let same = |y: usize| {
        let source = y.checked_add_signed(shift).and_then(|source| before.get(source));
        source == Some(&after[y])
    };
    let (mut best, mut gain, mut start, mut count) = (0..0, 0, 0, 0);
    for y in 0..after.len() {
        if !same(y) {
            (start, count) = (y + 1, 0);
            continue;
        }
        count += usize::from(changed(y));
        if count > gain {
            (best, gain) = (start..y + 1, count);
        }
    }
    let all = (0..after.len()).filter(|y| changed(*y)).count();
    if gain * 4 < all || best.is_empty() {
        return None;
    }
    let line = |y: usize| area.y + u32::try_from(y).unwrap_or(0);
    let to = Rect { y: line(best.start), height: line(best.end) - line(best.start), ..*area };
    let from = line(best.start.checked_add_signed(shift)?);
    let equal = |n: u32| old.line(&to, from + n) == new.line(&to, to.y + n);
    (0..to.height).all(equal).then_some(Scroll { to, from })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::vnc::region::Region;
    use crate::picture::surface::Surface;
    use proptest::prelude::*;

    /// A picture whose line `y` shows `lines[y]`, in the columns of `area` only.
    fn picture(area: &Rect, lines: &[u8]) -> Frame {
        let mut surface = Surface::new(64, 64);
        for (y, value) in (area.y..area.bottom()).zip(lines) {
            let at = area.x as usize * 4..area.right() as usize * 4;
            surface.line_mut(y)[at].fill(*value);
        }
        let mut frame = Frame::new((64, 64));
        frame.publish(&surface, &[surface.area()]);
        frame
    }

    proptest! {
        #[test]
        fn a_scroll_is_found_and_is_one(
            lines in prop::collection::vec(0..6u8, 64),
            shift in 1..20usize,
            up: bool,
            noise in 0..64usize,
        ) {
            let area = Rect { x: 9, y: 5, width: 40, height: 50 };
            let numbered: Vec<u8> = (0u8..).zip(&lines)
                .map(|(n, line)| if *line == 0 { 0 } else { n }).collect();
            let mut moved = numbered.clone();
            if up { moved.rotate_left(shift) } else { moved.rotate_right(shift) }
            moved[noise] = 99;
            let (old, new) = (picture(&area, &numbered), picture(&area, &moved));
            let found = find(&old, &new, &area);
            prop_assert!(found.is_some());
            if let Some(scroll) = found {
                let mut viewer = Frame::new((64, 64));
                viewer.copy(&old, &Region::of(old.area()));
                viewer.scroll(&scroll.to, scroll.from);
                let left = viewer.update_from(&new, &Region::of(scroll.to));
                prop_assert!(left.is_empty());
            }
        }
    }

    #[test]
    fn what_is_new_is_no_scroll() {
        let area = Rect { x: 0, y: 0, width: 64, height: 64 };
        let lines: Vec<u8> = (0..128).collect();
        let (old, new) = (picture(&area, &lines), picture(&area, &lines[64..]));
        assert_eq!(find(&old, &new, &area), None);
        assert_eq!(find(&old, &old, &area), None);
    }
}
