//! Graphics whose pixels come out of the four planes.

use std::fmt;
use std::ops::Range;

use crate::modes::raster::Raster;

/// How the planes' bytes become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// A bit of each plane: 8 pixels of 16 colours an address.
    Single,
    /// Two bits of a plane, as the CGA has them: four pixels of planes 0 and 2, then four
    /// of planes 1 and 3, an address.
    Interleaved,
    /// A byte of one plane after the other: 4 pixels of 256 colours an address.
    Packed,
}

impl Shift {
    /// Pixels of an address.
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
    /// Dots that show one pixel.
    pub(crate) dots: u32,
    /// What each colour number shows; 16 or 256 of them.
    pub(crate) palette: Box<[u32]>,
    /// The bytes of video memory that may be visible.
    pub(crate) bytes: Range<u64>,
}

impl Planes {
    /// The addresses that `width` dots of a line take, shifted by `pan` of them.
    pub(crate) fn addresses(&self, width: u32, pan: u32) -> u32 {
        (width + pan).div_ceil(self.dots * self.shift.pixels())
    }
}
