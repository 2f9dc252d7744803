//! Copies of the picture: the published one, and the one that a viewer has.

use crate::output::vnc::region::{Region, intersection};
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};

const PIXEL: usize = 4;

/// A picture of 4 bytes per pixel, in the format of a [`Surface`].
#[derive(Debug, Default)]
pub(crate) struct Frame {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Frame {
    /// A black picture.
    pub(crate) fn new((width, height): (u32, u32)) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize * PIXEL] }
    }

    pub(crate) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    pub(crate) fn area(&self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Line `y` of `area`, which lies within the picture.
    pub(crate) fn line(&self, area: &Rect, y: u32) -> &[u8] {
        let at = self.at(area.x, y);
        &self.pixels[at..at + area.width as usize * PIXEL]
    }

    fn line_mut(&mut self, area: &Rect, y: u32) -> &mut [u8] {
        let at = self.at(area.x, y);
        &mut self.pixels[at..at + area.width as usize * PIXEL]
    }

    fn at(&self, x: u32, y: u32) -> usize {
        (y as usize * self.width as usize + x as usize) * PIXEL
    }

    /// Copies `areas` of `surface`, clipped to both pictures.
    pub(crate) fn publish(&mut self, surface: &Surface, areas: &[Rect]) {
        let stride = self.width as usize * PIXEL;
        let both = intersection(&self.area(), &surface.area());
        for area in areas.iter().filter_map(|area| intersection(area, &both?)) {
            let at = self.at(area.x, area.y);
            if let Err(error) = surface.read(area, &mut self.pixels[at..], stride) {
                log::error!("vnc: {error}"); // the area lies in the surface
            }
        }
    }

    /// A copy.
    pub(crate) fn duplicate(&self) -> Self {
        Self { pixels: self.pixels.clone(), ..*self }
    }

    /// The picture cut or padded with black to `size`.
    pub(crate) fn fitted(&self, size: (u32, u32)) -> Self {
        let mut fitted = Self::new(size);
        fitted.copy(self, &Region::of(fitted.area()));
        fitted
    }

    /// Copies `areas` of `other`; parts outside of it become black.
    pub(crate) fn copy(&mut self, other: &Self, areas: &Region) {
        let all = self.area();
        for area in areas.rects().iter().filter_map(|area| intersection(area, &all)) {
            let shown = intersection(&area, &other.area());
            for y in area.y..area.bottom() {
                let line = self.line_mut(&area, y);
                let width = match shown {
                    Some(shown) if y < shown.bottom() => {
                        let from = other.line(&shown, y);
                        line[..from.len()].copy_from_slice(from);
                        from.len()
                    }
                    _ => 0,
                };
                line[width..].fill(0);
            }
        }
    }

    /// Moves `height` lines of `area` that begin at line `from` to the top of `area`.
    pub(crate) fn scroll(&mut self, area: &Rect, from: u32) {
        let line = area.width as usize * PIXEL;
        let mut step = |y: u32| {
            let start = self.at(area.x, from + y);
            let to = self.at(area.x, area.y + y);
            self.pixels.copy_within(start..start + line, to);
        };
        if from > area.y {
            (0..area.height).for_each(&mut step);
        } else {
            (0..area.height).rev().for_each(&mut step);
        }
    }

    /// Copies from `next` the pixels of `areas` that differ; returns where. The areas must lie in
    /// both pictures.
    pub(crate) fn update_from(&mut self, next: &Self, areas: &Region) -> Region {
        let mut changed = Region::default();
        for area in areas.rects() {
            let mut damage = Damage::default();
            for y in area.y..area.bottom() {
                let (old, new) = (self.line_mut(area, y), next.line(area, y));
                if old == new {
                    continue;
                }
                let differs = |(old, new): (&[u8], &[u8])| old != new;
                let mut pairs = old.chunks(PIXEL).zip(new.chunks(PIXEL));
                let first = pairs.position(differs).unwrap_or(0);
                let mut pairs = old.chunks_exact(PIXEL).zip(new.chunks_exact(PIXEL));
                let last = pairs.rposition(differs).unwrap_or(0);
                old.copy_from_slice(new);
                let column = |at: usize| area.x + u32::try_from(at).unwrap_or(0);
                let width = column(last + 1) - column(first);
                damage.add(Rect { x: column(first), y, width, height: 1 });
            }
            changed.add_all(&damage.finish().0);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(width: u32, pixels: &[u8]) -> Frame {
        let height = u32::try_from(pixels.len()).unwrap() / width;
        let pixels = pixels.iter().flat_map(|pixel| [*pixel, 0, 0, 0]).collect();
        Frame { width, height, pixels }
    }

    proptest! {
        #[test]
        fn a_frame_follows_and_names_what_changed(
            old in prop::collection::vec(0..2u8, 12 * 9),
            new in prop::collection::vec(0..2u8, 12 * 9),
            (x, y, width, height) in (0..12u32, 0..9u32, 1..12u32, 1..9u32),
        ) {
            let (mut seen, next) = (frame(12, &old), frame(12, &new));
            let area = Rect { x, y, width: width.min(12 - x), height: height.min(9 - y) };
            let changed = seen.update_from(&next, &Region::of(area));
            for (at, (old, new)) in (0u32..).zip(old.iter().zip(&new)) {
                let (x, y) = (at % 12, at / 12);
                let inside = area.contains(x, y);
                let pixel = seen.pixels[seen.at(x, y)];
                prop_assert_eq!(pixel, if inside { *new } else { *old });
                let named = changed.rects().iter().any(|rect| rect.contains(x, y));
                prop_assert!(inside || !named);
                prop_assert!(!inside || old == new || named);
            }
        }

        #[test]
        fn a_picture_of_another_size_is_cut_or_padded(
            (width, height) in (1..9u32, 1..9u32),
            (from_width, from_height) in (1..9u32, 1..9u32),
        ) {
            let source = frame(from_width, &vec![7; (from_width * from_height) as usize]);
            let target = source.fitted((width, height));
            for (at, pixel) in (0u32..).zip(target.pixels.chunks(4)) {
                let (x, y) = (at % width, at / width);
                prop_assert_eq!(pixel[0], if source.area().contains(x, y) { 7 } else { 0 });
            }
        }
    }

    #[test]
    fn lines_move_up_and_down() {
        let mut frame = frame(2, &[1, 1, 2, 2, 3, 3, 4, 4]);
        frame.scroll(&Rect { x: 1, y: 0, width: 1, height: 3 }, 1);
        let shown = |frame: &Frame| frame.pixels.chunks(4).map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!(shown(&frame), [1, 2, 2, 3, 3, 4, 4, 4]);
        frame.scroll(&Rect { x: 0, y: 1, width: 2, height: 3 }, 0);
        assert_eq!(shown(&frame), [1, 2, 1, 2, 2, 3, 3, 4]);
    }
}
