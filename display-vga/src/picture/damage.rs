//! Damage: the changed pixels, as few rectangles.

use crate::picture::surface::Rect;

/// How many of the last rectangles a new one may be joined with: windows side by side that change
/// at the same time.
const MAX_OPEN: usize = 4;

/// Collects areas from the top down, and joins neighbours whose hull has few other pixels.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    rects: Vec<Rect>,
}

impl Damage {
    /// Empty, with the buffer of former rectangles.
    pub(crate) fn reusing(mut rects: Vec<Rect>) -> Self {
        rects.clear();
        Self { rects }
    }

    pub(crate) fn add(&mut self, area: Rect) {
        if area.pixels() == 0 {
            return;
        }
        // Most lines continue the last one.
        if let Some(last) = self.rects.last_mut() {
            if (last.x, last.width, last.bottom()) == (area.x, area.width, area.y) {
                last.height += area.height;
                return;
            }
        }
        let open = self.rects.len().saturating_sub(MAX_OPEN);
        let joined = self.rects[open..].iter_mut().rev().find_map(|rect| {
            let hull = rect.hull(&area);
            let touches = area.y <= rect.bottom()
                && rect.y <= area.bottom()
                && area.x <= rect.right()
                && rect.x <= area.right();
            // At most a third of the hull belongs to neither.
            (touches && hull.pixels() * 2 <= (rect.pixels() + area.pixels()) * 3)
                .then(|| *rect = hull)
        });
        if joined.is_none() {
            self.rects.push(area);
        }
    }

    /// The rectangles, and how many scan lines they touch.
    pub(crate) fn finish(mut self) -> (Vec<Rect>, u32) {
        self.rects.sort_unstable_by_key(|rect| (rect.y, rect.x));
        let (mut lines, mut seen) = (0, 0);
        for rect in &self.rects {
            lines += rect.bottom().saturating_sub(rect.y.max(seen));
            seen = seen.max(rect.bottom());
        }
        (self.rects, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    #[test]
    fn two_sprites_are_two_rectangles() {
        let mut damage = Damage::default();
        for y in 10..74 {
            damage.add(rect(100, y, 64, 1));
            damage.add(rect(400, y, 32, 1));
        }
        assert_eq!(damage.finish(), (vec![rect(100, 10, 64, 64), rect(400, 10, 32, 64)], 64));
    }

    proptest! {
        #[test]
        fn nothing_is_left_out(
            areas in prop::collection::vec((0..40u32, 0..30u32, 0..9u32, 0..4u32), 0..40),
        ) {
            let mut areas: Vec<Rect> = areas.into_iter().map(|(x, y, w, h)| rect(x, y, w, h))
                .collect();
            areas.sort_by_key(|area| area.y);
            let mut damage = Damage::default();
            areas.iter().for_each(|area| damage.add(*area));
            let (rects, lines) = damage.finish();
            for area in areas {
                for (x, y) in (area.x..area.right())
                    .flat_map(|x| (area.y..area.bottom()).map(move |y| (x, y))) {
                    prop_assert!(rects.iter().any(|rect| rect.contains(x, y)));
                }
            }
            let touched = (0..40)
                .filter(|y| rects.iter().any(|rect| (rect.y..rect.bottom()).contains(y)));
            prop_assert_eq!(lines as usize, touched.count());
        }
    }
}
