//! What a mode shows, and whether there is memory for it.

use std::ops::Range;

use thiserror::Error;

/// A display mode that cannot be set.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VbeError {
    /// A side is zero or longer than the registers can say.
    #[error(
        "{width}x{height} pixels: both sides must be from 1 to {}x{}",
        Mode::MAX_WIDTH,
        Mode::MAX_HEIGHT
    )]
    Geometry {
        /// Width in pixels.
        width: u32,
        /// Height in lines.
        height: u32,
    },
    /// Only 32 bits per pixel are drawn.
    #[error("{depth} bits per pixel were asked for, 32 are supported")]
    Depth {
        /// Bits per pixel.
        depth: u32,
    },
    /// The visible part reaches past the end of video memory.
    #[error(
        "{width}x{height} pixels from ({x}, {y}) in lines of {virtual_width} need {needed} bytes of video memory, there are {vram}"
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

/// A linear frame buffer: which bytes of video memory are which lines.
///
/// Pixels are of 4 bytes: blue, green, red, and one without meaning. Holding one
/// proves that all visible bytes lie in video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    width: u32,
    height: u32,
    /// First visible byte.
    start: u64,
    /// Bytes from one line to the next.
    stride: u64,
}

/// Bytes of a pixel.
pub(crate) const PIXEL: u64 = 4;

impl Mode {
    /// The longest line, in pixels, that the interface reports as possible.
    pub const MAX_WIDTH: u32 = 16000;
    /// The most lines that the interface reports as possible.
    pub const MAX_HEIGHT: u32 = 12000;

    /// `width` x `height` pixels from (`x`, `y`) of a virtual screen whose lines have
    /// `virtual_width` pixels (less than `width` counts as `width`), in `vram` bytes.
    pub(crate) fn new(
        (width, height, depth): (u32, u32, u32),
        virtual_width: u32,
        (x, y): (u32, u32),
        vram: u64,
    ) -> Result<Self, VbeError> {
        if width == 0 || height == 0 || width > Self::MAX_WIDTH || height > Self::MAX_HEIGHT {
            return Err(VbeError::Geometry { width, height });
        }
        if u64::from(depth) != PIXEL * 8 {
            return Err(VbeError::Depth { depth });
        }
        let virtual_width = virtual_width.max(width);
        let stride = u64::from(virtual_width) * PIXEL;
        let start = u64::from(y) * stride + u64::from(x) * PIXEL;
        let mode = Self { width, height, start, stride };
        let needed = mode.visible().end;
        if needed > vram {
            return Err(VbeError::TooLarge { width, height, x, y, virtual_width, needed, vram });
        }
        Ok(mode)
    }

    /// The width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bytes of the visible part of a line.
    pub fn line_bytes(&self) -> u64 {
        u64::from(self.width) * PIXEL
    }

    /// Bytes of the whole picture.
    pub fn picture_bytes(&self) -> u64 {
        self.line_bytes() * u64::from(self.height)
    }

    /// The visible bytes of line `y`, in video memory.
    pub fn line(&self, y: u32) -> Range<u64> {
        let start = self.start + u64::from(y) * self.stride;
        start..start + self.line_bytes()
    }

    /// From the first visible byte to the last.
    pub fn visible(&self) -> Range<u64> {
        self.start..self.line(self.height - 1).end
    }

    /// The lines that have a visible byte among `bytes`.
    pub fn lines_in(&self, bytes: Range<u64>) -> Range<u32> {
        let from = bytes.start.max(self.start) - self.start;
        let to = bytes.end.min(self.visible().end).saturating_sub(self.start);
        if from >= to {
            return 0..0;
        }
        // A start in the invisible tail of a line touches only the next one.
        let tail = u64::from(from % self.stride >= self.line_bytes());
        let line = |n: u64| u32::try_from(n).unwrap_or(self.height).min(self.height);
        let first = line(from / self.stride + tail);
        first..line(to.div_ceil(self.stride)).max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_in_a_range_are_those_that_share_a_byte(
            (width, height, extra) in (1..40u32, 1..20u32, 0..10u32),
            (x, y) in (0..5u32, 0..5u32),
            (a, b) in (0..6000u64, 0..6000u64),
        ) {
            let mode = Mode::new((width, height, 32), width + extra, (x, y), 1 << 20).unwrap();
            let bytes = a.min(b)..a.max(b);
            let expected: Vec<u32> = (0..height)
                .filter(|line| mode.line(*line).any(|byte| bytes.contains(&byte)))
                .collect();
            prop_assert_eq!(mode.lines_in(bytes).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_mode_must_fit_video_memory() {
        let vram = 640 * 480 * 4;
        assert!(Mode::new((640, 480, 32), 640, (0, 0), vram).is_ok());
        let refused = Mode::new((640, 480, 32), 640, (0, 1), vram).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "640x480 pixels from (0, 1) in lines of 640 need 1231360 bytes of video memory, there are 1228800"
        );
        assert_eq!(
            Mode::new((0, 480, 32), 0, (0, 0), vram),
            Err(VbeError::Geometry { width: 0, height: 480 })
        );
        assert_eq!(Mode::new((640, 480, 8), 0, (0, 0), vram), Err(VbeError::Depth { depth: 8 }));
        let all_ones = u32::from(u16::MAX);
        let huge = Mode::new((16000, 12000, 32), all_ones, (all_ones, all_ones), vram);
        assert!(matches!(huge, Err(VbeError::TooLarge { .. })));
    }
}
