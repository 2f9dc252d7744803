//! The picture as a canvas takes it.

use display_vga::{Rect, Surface};

/// Bytes of a pixel.
const PIXEL: usize = 4;

/// Red, green, blue and opacity of each pixel, lines from the top: the bytes of an `ImageData`
/// (HTML standard, "Pixel manipulation").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canvas {
    size: [u32; 2],
    bytes: Vec<u8>,
}

impl Canvas {
    /// Width and height.
    pub fn size(&self) -> [u32; 2] {
        self.size
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Converts the damaged pixels of `surface`: blue, green, red, and one byte that says nothing.
    pub(crate) fn update(&mut self, surface: &Surface, damage: &[Rect]) {
        let size = [surface.width(), surface.height()];
        let all = surface.bytes();
        if self.size != size {
            self.size = size;
            self.bytes = vec![0; all.len()];
        }
        let line = surface.width() as usize * PIXEL;
        for area in damage {
            let columns = area.x as usize * PIXEL..area.right() as usize * PIXEL;
            let lines = (area.y as usize..area.bottom() as usize).map(|y| y * line);
            for bytes in lines.map(|start| start + columns.start..start + columns.end) {
                let from = all[bytes.clone()].chunks_exact(PIXEL);
                let to = self.bytes[bytes].chunks_exact_mut(PIXEL);
                for (to, from) in to.zip(from) {
                    to.copy_from_slice(&[from[2], from[1], from[0], u8::MAX]);
                }
            }
        }
    }
}
