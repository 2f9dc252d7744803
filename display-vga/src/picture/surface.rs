//! A picture in memory, and areas of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ram_block::{RamBlock, difference};
use thiserror::Error;

/// An area of a picture, in pixels from its upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// The first column.
    pub x: u32,
    /// The first line.
    pub y: u32,
    /// How many columns.
    pub width: u32,
    /// How many lines.
    pub height: u32,
}

impl Rect {
    /// One past the last column.
    pub fn right(&self) -> u32 {
        self.x.saturating_add(self.width)
    }

    /// One past the last line.
    pub fn bottom(&self) -> u32 {
        self.y.saturating_add(self.height)
    }

    /// Whether the pixel at column `x` of line `y` is in the area.
    pub fn contains(&self, x: u32, y: u32) -> bool {
        (self.x..self.right()).contains(&x) && (self.y..self.bottom()).contains(&y)
    }

    /// Whether the areas share a pixel.
    pub fn intersects(&self, other: &Self) -> bool {
        self.pixels() > 0
            && other.pixels() > 0
            && self.x < other.right()
            && other.x < self.right()
            && self.y < other.bottom()
            && other.y < self.bottom()
    }

    /// How many pixels.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// The smallest area that holds both.
    pub(crate) fn hull(&self, other: &Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = self.right().max(other.right()) - x;
        let height = self.bottom().max(other.bottom()) - y;
        Self { x, y, width, height }
    }
}

/// Why an area cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum SurfaceError {
    /// The area exceeds the picture.
    #[error("{area:?} was asked for, the picture has {width}x{height} pixels")]
    Outside { area: Rect, width: u32, height: u32 },
    /// The buffer or the stride is too short.
    #[error("Lines of {line} bytes every {stride} bytes do not fit a buffer of {len} bytes")]
    Buffer { line: usize, stride: usize, len: usize },
}

/// A picture of 4 bytes per pixel: blue, green, red, and one unused; lines from the top.
///
/// It either has its own memory, and changes only in refreshes, or is a view of video memory:
/// then reads return the guest's current pixels, and pixels that change after a refresh are in
/// the damage of the next one.
#[derive(Clone)]
pub struct Surface {
    width: u32,
    height: u32,
    pixels: Pixels,
}

#[derive(Clone)]
enum Pixels {
    Own(Vec<u8>),
    Shared { vram: Arc<RamBlock>, start: u64, stride: u64 },
}

const PIXEL: usize = 4;

impl Default for Surface {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl Surface {
    /// A black picture.
    pub fn new(width: u32, height: u32) -> Self {
        let bytes = vec![0; width as usize * height as usize * PIXEL];
        Self { width, height, pixels: Pixels::Own(bytes) }
    }

    /// A view of `vram`, from byte `start` on, with `stride` bytes from line to line.
    pub(crate) fn shared(
        (width, height): (u32, u32),
        vram: Arc<RamBlock>,
        start: u64,
        stride: u64,
    ) -> Self {
        Self { width, height, pixels: Pixels::Shared { vram, start, stride } }
    }

    /// The width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The area of the whole picture.
    pub fn area(&self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }

    pub(crate) fn has_size(&self, width: u32, height: u32) -> bool {
        (self.width, self.height) == (width, height)
    }

    /// Whether it is a view of video memory.
    pub fn is_shared(&self) -> bool {
        matches!(self.pixels, Pixels::Shared { .. })
    }

    /// The bytes, `width * 4` per line without gaps; a copy if video memory is shared.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.pixels {
            Pixels::Own(bytes) => Cow::Borrowed(bytes),
            Pixels::Shared { .. } => {
                let mut copy = Self::new(self.width, self.height);
                for y in 0..self.height {
                    self.read_line(y, 0, copy.line_mut(y));
                }
                match copy.pixels {
                    Pixels::Own(bytes) => Cow::Owned(bytes),
                    Pixels::Shared { .. } => Cow::default(),
                }
            }
        }
    }

    /// Copies an area into `out`, a line every `stride` bytes.
    ///
    /// # Errors
    ///
    /// [`SurfaceError`]; nothing is copied then.
    pub fn read(&self, area: Rect, out: &mut [u8], stride: usize) -> Result<(), SurfaceError> {
        let (width, height) = (self.width, self.height);
        let ends =
            |from: u32, len: u32, end: u32| from.checked_add(len).is_some_and(|to| to <= end);
        if !ends(area.x, area.width, width) || !ends(area.y, area.height, height) {
            return Err(SurfaceError::Outside { area, width, height });
        }
        if area.pixels() == 0 {
            return Ok(());
        }
        let line = area.width as usize * PIXEL;
        let needed =
            (area.height as usize - 1).checked_mul(stride).and_then(|n| n.checked_add(line));
        if stride < line || needed.is_none_or(|needed| needed > out.len()) {
            return Err(SurfaceError::Buffer { line, stride, len: out.len() });
        }
        for (y, out) in (area.y..area.bottom()).zip(out.chunks_mut(stride)) {
            self.read_line(y, area.x, &mut out[..line]);
        }
        Ok(())
    }

    /// Red, green and blue of a pixel; black outside the picture.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        if x >= self.width || y >= self.height {
            return [0; 3];
        }
        let mut pixel = [0; PIXEL];
        self.read_line(y, x, &mut pixel);
        let [blue, green, red, _] = pixel;
        [red, green, blue]
    }

    /// Pixels of line `y` from column `x` on; they lie in the picture.
    fn read_line(&self, y: u32, x: u32, out: &mut [u8]) {
        match &self.pixels {
            Pixels::Own(bytes) => {
                let at = self.at(x, y);
                out.copy_from_slice(&bytes[at..at + out.len()]);
            }
            Pixels::Shared { vram, start, stride } => {
                let at = start + u64::from(y) * stride + u64::from(x) * PIXEL as u64;
                if let Err(error) = vram.read(at, out) {
                    log::error!("vga: {error}"); // a mode lies within video memory
                }
            }
        }
    }

    fn at(&self, x: u32, y: u32) -> usize {
        (y as usize * self.width as usize + x as usize) * PIXEL
    }

    /// The pixels in its own memory; empty if it is a view of video memory.
    pub(crate) fn own(&self) -> &[u8] {
        match &self.pixels {
            Pixels::Own(bytes) => bytes,
            Pixels::Shared { .. } => &[],
        }
    }

    /// As [`own`](Self::own), but mutable.
    pub(crate) fn own_mut(&mut self) -> &mut [u8] {
        match &mut self.pixels {
            Pixels::Own(bytes) => bytes,
            Pixels::Shared { .. } => &mut [],
        }
    }

    /// A line in its own memory.
    pub(crate) fn line_mut(&mut self, y: u32) -> &mut [u8] {
        let (from, to) = (self.at(0, y), self.at(0, y + 1));
        self.own_mut().get_mut(from..to).unwrap_or_default()
    }

    /// The bytes of `width` pixels of line `y` from column `x` on, in its own memory.
    pub(crate) fn own_bytes(&self, x: u32, y: u32, width: u32) -> Range<usize> {
        let from = self.at(x, y);
        from..from + width as usize * PIXEL
    }

    /// Rounds `bytes`, which count from column `x`, out to whole pixels: returns their columns and
    /// bytes.
    pub(crate) fn whole_pixels(x: u32, bytes: &Range<usize>) -> (Range<u32>, Range<usize>) {
        let bytes = bytes.start / PIXEL * PIXEL..bytes.end.next_multiple_of(PIXEL);
        let column = |at: usize| x + u32::try_from(at / PIXEL).unwrap_or(0);
        (column(bytes.start)..column(bytes.end), bytes)
    }

    /// Copies pixels into line `y` from column `x` on, in its own memory. Returns the columns from
    /// the first that changed to the last.
    pub(crate) fn update(&mut self, y: u32, x: u32, new: &[u8]) -> Range<u32> {
        let at = x as usize * PIXEL;
        let Some(old) = self.line_mut(y).get_mut(at..at + new.len()) else { return 0..0 };
        let (columns, changed) = Self::whole_pixels(x, &difference(old, new));
        old[changed.clone()].copy_from_slice(&new[changed]);
        columns
    }
}

impl PartialEq for Surface {
    /// Whether they show the same picture, in their own memory or video memory.
    fn eq(&self, other: &Self) -> bool {
        let colours = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        self.width == other.width && self.height == other.height && {
            let (a, b) = (self.bytes(), other.bytes());
            a.chunks_exact(PIXEL).map(colours).eq(b.chunks_exact(PIXEL).map(colours))
        }
    }
}

impl Eq for Surface {}

impl fmt::Debug for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surface")
            .field("width", &self.width)
            .field("height", &self.height)
            .field("shared", &self.is_shared())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_update_says_from_where_to_where_it_changed(
            old in prop::collection::vec(0..3u8, 60),
            new in prop::collection::vec(0..3u8, 60),
            sparse in any::<bool>(),
            (from, len) in (0..60u32, 0..60u32),
        ) {
            let new: Vec<u8> = if sparse {
                old.iter().zip(&new).enumerate()
                    .map(|(n, (old, new))| if n % 17 == 0 { *new } else { *old }).collect()
            } else { new };
            let bytes =
                |pixels: &[u8]| -> Vec<u8> { pixels.iter().flat_map(|p| [*p, 0, 0, 0]).collect() };
            let mut surface = Surface::new(60, 2);
            surface.line_mut(1).copy_from_slice(&bytes(&old));
            let range = from as usize..(from + len).min(60) as usize;
            let changed = surface.update(1, from, &bytes(&new[range.clone()]));
            let differing: Vec<u32> = (0..60).filter(|x| {
                let x = *x as usize;
                range.contains(&x) && old[x] != new[x]
            }).collect();
            match (differing.first(), differing.last()) {
                (Some(first), Some(last)) => prop_assert_eq!(changed, *first..last + 1),
                _ => prop_assert!(changed.is_empty()),
            }
            for x in 0..60u32 {
                let expected = if range.contains(&(x as usize)) { &new } else { &old };
                prop_assert_eq!(surface.pixel(x, 1), [0, 0, expected[x as usize]]);
            }
        }
    }

    #[test]
    fn areas_without_pixels_share_none() {
        let all = Rect { x: 0, y: 0, width: 8, height: 8 };
        let at = |x, y, width, height| Rect { x, y, width, height };
        assert!(all.intersects(&at(7, 7, 5, 5)));
        for empty in [at(3, 3, 0, 0), at(3, 3, 0, 9), at(0, 5, 9, 0)] {
            assert!(!all.intersects(&empty) && !empty.intersects(&all), "{empty:?}");
        }
        assert!(!all.intersects(&at(8, 0, 5, 5)) && !all.intersects(&at(0, 8, 5, 5)));
    }

    #[test]
    fn an_area_is_read_into_lines_of_any_stride() {
        let mut surface = Surface::new(4, 3);
        surface.own_mut().iter_mut().zip(0u8..).for_each(|(byte, n)| *byte = n);
        let area = Rect { x: 1, y: 1, width: 2, height: 2 };
        let mut out = [0xee; 19];
        surface.read(area, &mut out, 11).unwrap();
        assert_eq!(out[..8], [20, 21, 22, 23, 24, 25, 26, 27]);
        assert_eq!(out[8..11], [0xee; 3]);
        assert_eq!(out[11..], [36, 37, 38, 39, 40, 41, 42, 43]);
        let short = surface.read(area, &mut out[..18], 11).unwrap_err();
        assert_eq!(short, SurfaceError::Buffer { line: 8, stride: 11, len: 18 });
        assert!(matches!(surface.read(area, &mut out, 7), Err(SurfaceError::Buffer { .. })));
        let outside = Rect { x: 3, ..area };
        assert!(matches!(surface.read(outside, &mut out, 11), Err(SurfaceError::Outside { .. })));
        let far = Rect { y: u32::MAX, ..area };
        assert!(matches!(surface.read(far, &mut out, 11), Err(SurfaceError::Outside { .. })));
    }
}
