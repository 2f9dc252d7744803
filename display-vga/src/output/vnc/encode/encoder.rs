//! Encodes rectangles in a viewer's encoding and pixel format.
//!
//! A zlib stream lasts as long as the connection, so each viewer has one encoder. The streams are
//! created when they are first needed: about 400 KiB each, at most five.

use crate::output::vnc::encode::tight::Tight;
use crate::output::vnc::encode::tiles::TILE;
use crate::output::vnc::encode::zlib::Zlib;
use crate::output::vnc::encode::{hextile, zrle};
use crate::output::vnc::format::{Coder, PixelFormat};
use crate::output::vnc::frame::Frame;
use crate::output::vnc::message::Encoding;
use crate::picture::surface::Rect;

/// The widest piece: the limit of the Tight encoding.
const PIECE_WIDTH: u32 = 2048;
/// About the most pixels of a piece.
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
    /// A buffer for data to be compressed.
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

    /// Encodes pixels in `format` from now on.
    pub(crate) fn set_format(&mut self, format: PixelFormat) {
        self.format = format;
        (self.whole, self.compact) = (format.whole(), format.compact());
        self.tight_pixels = format.tight();
    }

    /// Sets the level of streams that are created later, from 0 (fast) to 9 (small).
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

/// Splits `area` into pieces of bounded size, from the top.
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

#[cfg(test)]
mod tests;
