//! What the registers show: which bytes of video memory are which pixels.

pub(crate) mod decode;
pub(crate) mod linear;
pub(crate) mod planes;
pub(crate) mod raster;
pub(crate) mod text;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ram_block::RamBlock;
use thiserror::Error;

use linear::Linear;
use planes::Planes;
use text::Text;

use crate::surface::Surface;

/// The longest line, in pixels, that the VBE registers report as possible.
pub(crate) const MAX_WIDTH: u32 = 16000;
/// The most lines that the VBE registers report as possible.
pub(crate) const MAX_HEIGHT: u32 = 12000;

/// The most pixels of a picture: as many as the largest video memory holds at 32 bits each.
/// Fewer bits would ask for surfaces of many times the video memory.
pub(crate) const MAX_PIXELS: u32 = 1 << 26;

/// A VBE mode that cannot be set.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VbeError {
    /// A side is zero or longer than the registers can say.
    #[error("{width}x{height} pixels: both sides must be from 1 to {MAX_WIDTH}x{MAX_HEIGHT}")]
    Geometry {
        /// Width in pixels.
        width: u32,
        /// Height in lines.
        height: u32,
    },
    /// The picture would take too much of the host's memory.
    #[error("{width}x{height} pixels: at most {MAX_PIXELS} are shown")]
    Pixels {
        /// Width in pixels.
        width: u32,
        /// Height in lines.
        height: u32,
    },
    /// There are no pixels of so many bits.
    #[error("{depth} bits per pixel were asked for; there are 4, 8, 15, 16, 24 and 32")]
    Depth {
        /// Bits per pixel.
        depth: u32,
    },
    /// The visible part reaches past the end of video memory.
    #[error(
        "{width}x{height} pixels from ({x}, {y}) in lines of {virtual_width} need {needed} bytes \
            of video memory, there are {vram}"
    )]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in lines.
        height: u32,
        /// First visible column of the virtual screen.
        x: u32,
        /// First visible line of the virtual screen.
        y: u32,
        /// Length of a line in pixels, the invisible part included.
        virtual_width: u32,
        /// Bytes up to the end of the last visible line.
        needed: u64,
        /// Bytes that there are.
        vram: u64,
    },
}

/// A display mode, with all that a picture depends on beside video memory.
///
/// Holding one proves that every byte that it shows lies in video memory. The modes of
/// the VGA have the size of its raster: one pixel a dot of the full clock and one line a
/// scan line, so that 320x200 pixels of 256 colours are a picture of 640x400.
#[derive(Clone, PartialEq, Eq)]
pub struct Mode {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text(Text),
    Planes(Planes),
    Linear(Linear),
}

impl Mode {
    /// The width of the picture in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height of the picture in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes of video memory that may be visible.
    pub(crate) fn bytes(&self) -> Range<u64> {
        match &self.kind {
            Kind::Text(_) => 0..decode::LEGACY_BYTES,
            Kind::Planes(planes) => planes.bytes.clone(),
            Kind::Linear(linear) => linear.visible(),
        }
    }

    /// Whether a change to `other` needs no more than to draw what differs, which is so
    /// for texts of one size: their cells are compared.
    pub(crate) fn continues_as(&self, other: &Self) -> bool {
        let same_size = (self.width, self.height) == (other.width, other.height);
        same_size && self.is_text() && other.is_text()
    }

    /// The surface that is video memory itself, if the format allows that.
    pub(crate) fn shared(&self, vram: &Arc<RamBlock>) -> Option<Surface> {
        match &self.kind {
            Kind::Linear(linear) if linear.format == linear::Format::Bgrx => {
                let size = (self.width, self.height);
                Some(Surface::shared(size, vram.clone(), linear.start, linear.stride))
            }
            _ => None,
        }
    }

    /// Whether it shows characters.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text(_))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height, kind } = self;
        match kind {
            Kind::Text(text) => write!(f, "text {}x{}", text.columns, text.rows(*height).count())?,
            Kind::Planes(planes) => write!(f, "{} graphics", planes.shift)?,
            Kind::Linear(linear) => write!(f, "{} graphics", linear.format)?,
        }
        write!(f, ", {width}x{height}")
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({self})")
    }
}
