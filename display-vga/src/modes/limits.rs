//! The limits of modes, and the error for modes that exceed them.

use thiserror::Error;

/// The longest line, in pixels, that the VBE registers report as possible.
pub(crate) const MAX_WIDTH: u32 = 16000;
/// The most lines that the VBE registers report as possible.
pub(crate) const MAX_HEIGHT: u32 = 12000;

/// The most pixels of a picture: as many as fit the largest video memory at 32 bits each. Without
/// this limit, modes of fewer bits could need surfaces many times larger than video memory.
pub(crate) const MAX_PIXELS: u32 = 1 << 26;

/// Bytes of video memory that the VGA's own modes can show: 64 KiB a plane.
pub(crate) const LEGACY_BYTES: u64 = 256 << 10;

/// A VBE mode that cannot be set.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum VbeError {
    /// A side is zero or exceeds the limit.
    #[error("{width}x{height} pixels: both sides must be from 1 to {MAX_WIDTH}x{MAX_HEIGHT}")]
    Geometry { width: u32, height: u32 },
    /// The picture would take too much of the host's memory.
    #[error("{width}x{height} pixels: at most {MAX_PIXELS} are shown")]
    Pixels { width: u32, height: u32 },
    /// The depth is not supported.
    #[error("{depth} bits per pixel were asked for; there are 4, 8, 15, 16, 24 and 32")]
    Depth { depth: u32 },
    /// The visible part reaches past the end of video memory.
    #[error(
        "{width}x{height} pixels from ({x}, {y}) in lines of {virtual_width} need {needed} bytes \
            of video memory, there are {vram}"
    )]
    TooLarge {
        width: u32,
        height: u32,
        x: u32,
        y: u32,
        /// In pixels, the invisible part included.
        virtual_width: u32,
        needed: u64,
        vram: u64,
    },
}
