//! A picture in memory, and areas of it.

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
    /// Whether the pixel at column `x` of line `y` is in the area.
    pub fn contains(&self, x: u32, y: u32) -> bool {
        (self.x..self.x.saturating_add(self.width)).contains(&x)
            && (self.y..self.y.saturating_add(self.height)).contains(&y)
    }

    /// Whether the areas share a pixel.
    pub fn intersects(&self, other: &Self) -> bool {
        self.x < other.x.saturating_add(other.width)
            && other.x < self.x.saturating_add(self.width)
            && self.y < other.y.saturating_add(other.height)
            && other.y < self.y.saturating_add(self.height)
    }
}

/// A picture of 4 bytes a pixel: blue, green, red, and one without meaning; lines
/// from the top, without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
}

const PIXEL: usize = 4;

impl Surface {
    /// A black picture.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, bytes: vec![0; width as usize * height as usize * PIXEL] }
    }

    /// The width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes, `width * 4` a line.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Red, green and blue of a pixel; black outside the picture.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        if x >= self.width || y >= self.height {
            return [0; 3];
        }
        let at = (y as usize * self.width as usize + x as usize) * PIXEL;
        [self.bytes[at + 2], self.bytes[at + 1], self.bytes[at]]
    }

    /// The bytes of `count` lines from `y` on.
    pub(crate) fn lines_mut(&mut self, y: u32, count: u32) -> &mut [u8] {
        let line = self.width as usize * PIXEL;
        &mut self.bytes[y as usize * line..(y as usize + count as usize) * line]
    }

    /// All of it.
    pub fn area(&self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }
}
