//! Graphics modes whose pixels are spread over the four planes.

use std::fmt;
use std::ops::Range;

use crate::modes::raster::Raster;

/// How the planes' bytes are shifted out as pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// One bit of each plane: 8 pixels of 16 colours per address.
    Single,
    /// Two bits of a plane, as on the CGA: four pixels of planes 0 and 2, then four of planes 1
    /// and 3, per address.
    Interleaved,
    /// A byte of one plane after the other: 4 pixels of 256 colours per address.
    Packed,
}

impl Shift {
    /// Pixels per address.
    pub(crate) fn pixels(self) -> u32 {
        match self {
            Self::Single | Self::Interleaved => 8,
            Self::Packed => 4,
        }
    }
}

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "16-colour planar",
            Self::Interleaved => "4-colour interleaved",
            Self::Packed => "256-colour",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) raster: Raster,
    pub(crate) shift: Shift,
    /// Dots per pixel.
    pub(crate) dots: u32,
    /// The colours, 16 or 256 of them.
    pub(crate) palette: Box<[u32]>,
    /// The bytes of video memory that may be visible.
    pub(crate) bytes: Range<u64>,
}

impl Planes {
    /// How many addresses `width` dots of a line take, panned by `pan` dots.
    pub(crate) fn addresses(&self, width: u32, pan: u32) -> u32 {
        (width + pan).div_ceil(self.dots * self.shift.pixels())
    }
}
