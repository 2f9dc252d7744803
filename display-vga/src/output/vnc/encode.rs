//! Rectangles as bytes, in the encoding and format that a viewer wants.
//!
//! The zlib streams go on as long as the connection, so a viewer's encoder is as old as
//! the viewer. They are made when first needed, about 400 KiB each, at most five.

mod hextile;
mod palette;
mod tight;
mod zlib;
mod zrle;

use super::format::{Coder, PixelFormat};
use super::frame::Frame;
use super::message::Encoding;
use crate::surface::Rect;
use tight::Tight;
use zlib::Zlib;

/// The widest piece: the limit of the Tight encoding.
const PIECE_WIDTH: u32 = 2048;
/// Lines of the lowest piece of a high rectangle: those of a ZRLE tile.
const TILE: u32 = 64;
/// About how many pixels a piece has at most.
const PIECE_PIXELS: u32 = 1 << 16;

/// An encoder of rectangles for one viewer.
pub(crate) struct Encoder {
    format: PixelFormat,
    whole: Coder,
    compact: Coder,
    tight_pixels: Coder,
    level: u8,
    zlib: Option<Zlib>,
    zrle: Option<Zlib>,
    tight: Tight,
    /// The pixels of a piece.
    values: Vec<u32>,
    /// What is to be compressed.
    plain: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(format: PixelFormat) -> Self {
        Self {
            format,
            whole: format.whole(),
            compact: format.compact(),
            tight_pixels: format.tight(),
            level: 2,
            zlib: None,
            zrle: None,
            tight: Tight::default(),
            values: Vec::new(),
            plain: Vec::new(),
        }
    }

    pub(crate) fn format(&self) -> &PixelFormat {
        &self.format
    }

    /// Pixels are written in `format` from now on.
    pub(crate) fn set_format(&mut self, format: PixelFormat) {
        self.format = format;
        (self.whole, self.compact) = (format.whole(), format.compact());
        self.tight_pixels = format.tight();
    }

    /// The level of streams that are not made yet, from 0 (fast) to 9 (small).
    pub(crate) fn set_level(&mut self, level: u8) {
        self.level = level.clamp(1, 9);
    }

    /// Appends the data of `area` of `frame`, which is one of [`pieces`].
    pub(crate) fn encode(
        &mut self,
        encoding: Encoding,
        frame: &Frame,
        area: &Rect,
        out: &mut Vec<u8>,
    ) {
        let coder = match encoding {
            Encoding::Raw | Encoding::Hextile | Encoding::Zlib => &self.whole,
            Encoding::Zrle => &self.compact,
            Encoding::Tight => &self.tight_pixels,
        };
        self.values.clear();
        for y in area.y..area.bottom() {
            coder.values(frame.line(area, y), &mut self.values);
        }
        let (values, width) = (&self.values[..], area.width as usize);
        let new = || Zlib::new(self.level);
        self.plain.clear();
        match encoding {
            Encoding::Raw => coder.put_all(values, out),
            Encoding::Hextile => hextile::encode(values, width, coder, out),
            Encoding::Zlib => {
                coder.put_all(values, &mut self.plain);
                self.zlib.get_or_insert_with(new).append_sized(&self.plain, out);
            }
            Encoding::Zrle => {
                zrle::encode(values, width, coder, &mut self.plain);
                self.zrle.get_or_insert_with(new).append_sized(&self.plain, out);
            }
            Encoding::Tight => {
                self.tight.encode(values, width, coder, self.level, &mut self.plain, out);
            }
        }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("format", &self.format).finish_non_exhaustive()
    }
}

/// `area` in pieces of bounded size, from the top.
pub(crate) fn pieces(area: &Rect) -> impl Iterator<Item = Rect> + use<> {
    let Rect { x, y, width, height } = *area;
    let step = PIECE_WIDTH.min(width.max(1));
    let lines = (PIECE_PIXELS / step / TILE * TILE).max(TILE);
    let columns = move || (0..width).step_by(step as usize);
    (0..height).step_by(lines as usize).flat_map(move |top| {
        columns().map(move |left| Rect {
            x: x + left,
            y: y + top,
            width: step.min(width - left),
            height: lines.min(height - top),
        })
    })
}

/// The tiles of a piece `width` pixels wide, `size` to a side, from the left and the top;
/// `tile` is given the pixels and the width of each.
fn tiles(values: &[u32], width: usize, size: usize, mut tile: impl FnMut(&[u32], usize)) {
    let mut pixels = Vec::with_capacity(size * size);
    for rows in values.chunks(width * size) {
        for left in (0..width).step_by(size) {
            let columns = left..(left + size).min(width);
            pixels.clear();
            for row in rows.chunks(width) {
                pixels.extend_from_slice(&row[columns.clone()]);
            }
            tile(&pixels, columns.len());
        }
    }
}
#[cfg(test)]
mod tests;
