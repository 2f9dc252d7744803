//! A set of pixels as a bounded number of rectangles.

use crate::picture::surface::Rect;

/// The most rectangles. Beyond that, those whose hull has the fewest other pixels are joined.
const MAX_RECTS: usize = 64;

/// Pixels to be sent: few rectangles that cover all areas that were added, and maybe more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Region {
    rects: Vec<Rect>,
}

impl Region {
    /// The pixels of `area`.
    pub(crate) fn of(area: Rect) -> Self {
        let mut region = Self::default();
        region.add(area);
        region
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    pub(crate) fn rects(&self) -> &[Rect] {
        &self.rects
    }

    pub(crate) fn intersects(&self, area: &Rect) -> bool {
        self.rects.iter().any(|rect| rect.intersects(area))
    }

    /// The smallest rectangle that covers it.
    pub(crate) fn hull(&self) -> Option<Rect> {
        self.rects.iter().copied().reduce(|all, rect| all.hull(&rect))
    }

    /// The sum of its rectangles' pixels; these may overlap.
    pub(crate) fn pixels(&self) -> u64 {
        self.rects.iter().map(Rect::pixels).sum()
    }

    pub(crate) fn add(&mut self, mut area: Rect) {
        if area.pixels() == 0 || self.rects.iter().any(|rect| holds(rect, &area)) {
            return;
        }
        loop {
            let waste = |rect: &Rect| {
                rect.hull(&area).pixels().saturating_sub(rect.pixels() + area.pixels())
            };
            let least = self.rects.iter().map(waste).enumerate().min_by_key(|(_, waste)| *waste);
            match least {
                Some((at, waste)) if waste == 0 || self.rects.len() >= MAX_RECTS => {
                    area = self.rects.swap_remove(at).hull(&area);
                }
                _ => break,
            }
        }
        self.rects.push(area);
    }

    pub(crate) fn add_all(&mut self, areas: &[Rect]) {
        areas.iter().for_each(|area| self.add(*area));
    }

    /// Removes and returns the part in `area`.
    pub(crate) fn take(&mut self, area: &Rect) -> Self {
        let mut taken = Self::default();
        for rect in std::mem::take(&mut self.rects) {
            match intersection(&rect, area) {
                None => self.add(rect),
                Some(inside) => {
                    taken.add(inside);
                    around(&rect, &inside).into_iter().for_each(|piece| self.add(piece));
                }
            }
        }
        taken
    }
}

fn holds(outer: &Rect, inner: &Rect) -> bool {
    outer.hull(inner) == *outer
}

/// The pixels that both areas share, if any.
pub(crate) fn intersection(a: &Rect, b: &Rect) -> Option<Rect> {
    let (x, y) = (a.x.max(b.x), a.y.max(b.y));
    let width = a.right().min(b.right()).checked_sub(x)?;
    let height = a.bottom().min(b.bottom()).checked_sub(y)?;
    (width > 0 && height > 0).then_some(Rect { x, y, width, height })
}

/// The parts of `rect` above, below, left and right of `inside`, which must lie in it; parts may
/// be empty.
fn around(rect: &Rect, inside: &Rect) -> [Rect; 4] {
    let beside =
        |x: u32, right: u32| Rect { x, y: inside.y, width: right - x, height: inside.height };
    [
        Rect { height: inside.y - rect.y, ..*rect },
        Rect { y: inside.bottom(), height: rect.bottom() - inside.bottom(), ..*rect },
        beside(rect.x, inside.x),
        beside(inside.right(), rect.right()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rects() -> impl Strategy<Value = Vec<Rect>> {
        let rect = (0..60u32, 0..40u32, 0..12u32, 0..12u32);
        let rect = rect.prop_map(|(x, y, width, height)| Rect { x, y, width, height });
        prop::collection::vec(rect, 0..300)
    }

    fn pixels(rects: &[Rect]) -> std::collections::BTreeSet<(u32, u32)> {
        let points = |rect: &Rect| {
            let Rect { x, y, .. } = *rect;
            let (right, bottom) = (rect.right(), rect.bottom());
            (y..bottom).flat_map(move |y| (x..right).map(move |x| (x, y)))
        };
        rects.iter().flat_map(points).collect()
    }

    proptest! {
        #[test]
        fn what_is_added_is_there_until_it_is_taken(
            added in rects(),
            (x, y, width, height) in (0..60u32, 0..40u32, 0..70u32, 0..50u32),
        ) {
            let mut region = Region::default();
            region.add_all(&added);
            prop_assert!(region.rects().len() <= MAX_RECTS);
            let all = pixels(region.rects());
            prop_assert!(all.is_superset(&pixels(&added)));
            if added.len() <= 4 {
                let apart = added.iter().map(Rect::pixels).sum::<u64>();
                prop_assert!(region.pixels() <= apart, "nothing is gained by waste");
            }

            let area = Rect { x, y, width, height };
            let taken = region.take(&area);
            let (left, taken) = (pixels(region.rects()), pixels(taken.rects()));
            prop_assert!(taken.iter().all(|(x, y)| area.contains(*x, *y)));
            prop_assert!(
                taken.is_superset(&all.iter().copied().filter(|(x, y)| area.contains(*x, *y))
                    .collect()));
            prop_assert!(
                left.is_superset(&all.iter().copied().filter(|(x, y)| !area.contains(*x, *y))
                    .collect()));
            prop_assert!(region.rects().len() <= MAX_RECTS);
        }
    }

    #[test]
    fn neighbours_become_one() {
        let mut region = Region::default();
        for y in 0..1000 {
            region.add(Rect { x: 8, y, width: 100, height: 1 });
        }
        assert_eq!(region.rects(), [Rect { x: 8, y: 0, width: 100, height: 1000 }]);
        region.add(Rect { x: 10, y: 10, width: 3, height: 3 });
        assert_eq!(region.rects().len(), 1);
    }
}
