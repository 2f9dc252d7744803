//! Packed pixels: the modes of the VBE registers.

use std::fmt;
use std::ops::Range;

use crate::modes::limits::{MAX_HEIGHT, MAX_PIXELS, MAX_WIDTH, VbeError};
use crate::modes::raster::Raster;

/// The format of a pixel in video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One bit in each of four planes.
    Planar,
    /// An index into the palette.
    Indexed,
    /// 5 bits each of red, green and blue.
    Rgb555,
    /// 5, 6 and 5 bits.
    Rgb565,
    /// Bytes: blue, green, red.
    Bgr,
    /// Bytes: blue, green, red, and one unused.
    Bgrx,
}

impl Format {
    pub(crate) fn of_depth(depth: u32) -> Result<Self, VbeError> {
        Ok(match depth {
            4 => Self::Planar,
            8 => Self::Indexed,
            15 => Self::Rgb555,
            16 => Self::Rgb565,
            24 => Self::Bgr,
            32 => Self::Bgrx,
            _ => return Err(VbeError::Depth { depth }),
        })
    }

    /// Bytes of a pixel; 1 for planes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Planar | Self::Indexed => 1,
            Self::Rgb555 | Self::Rgb565 => 2,
            Self::Bgr => 3,
            Self::Bgrx => 4,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planar => "4-bit planar",
            Self::Indexed => "8-bit",
            Self::Rgb555 => "15-bit",
            Self::Rgb565 => "16-bit",
            Self::Bgr => "24-bit",
            Self::Bgrx => "32-bit",
        })
    }
}

/// A frame buffer. All its visible bytes lie in video memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linear {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) format: Format,
    /// The first visible byte.
    pub(crate) start: u64,
    /// Bytes from one line to the next.
    pub(crate) stride: u64,
    /// Pixels before the first visible one in its byte, for planes.
    pub(crate) pan: u32,
    /// The colours of an indexed format.
    pub(crate) palette: Box<[u32]>,
}

impl Linear {
    /// `width` x `height` pixels of `depth` bits from (`x`, `y`) of a virtual screen whose
    /// lines have `virtual_width` pixels (less than `width` counts as `width`), in `vram`
    /// bytes.
    pub(crate) fn new(
        (width, height, depth): (u32, u32, u32),
        virtual_width: u32,
        (x, y): (u32, u32),
        vram: u64,
    ) -> Result<Self, VbeError> {
        if width == 0 || height == 0 || width > MAX_WIDTH || height > MAX_HEIGHT {
            return Err(VbeError::Geometry { width, height });
        }
        if width * height > MAX_PIXELS {
            return Err(VbeError::Pixels { width, height });
        }
        let format = Format::of_depth(depth)?;
        let virtual_width = virtual_width.max(width);
        let (stride, skipped, pan) = match format {
            Format::Planar => {
                (u64::from(virtual_width.div_ceil(8)) * 4, u64::from(x / 8) * 4, x % 8)
            }
            _ => (u64::from(virtual_width) * format.bytes(), u64::from(x) * format.bytes(), 0),
        };
        let start = u64::from(y) * stride + skipped;
        let mode = Self { width, height, format, start, stride, pan, palette: Box::default() };
        let needed = mode.visible().end;
        if needed > vram {
            return Err(VbeError::TooLarge { width, height, x, y, virtual_width, needed, vram });
        }
        Ok(mode)
    }

    /// Bytes of the visible part of a line.
    pub(crate) fn line_bytes(&self) -> u64 {
        match self.format {
            Format::Planar => u64::from((self.width + self.pan).div_ceil(8)) * 4,
            format => u64::from(self.width) * format.bytes(),
        }
    }

    /// The visible bytes of line `y`, in video memory.
    pub(crate) fn line(&self, y: u32) -> Range<u64> {
        let start = self.start + u64::from(y) * self.stride;
        start..start + self.line_bytes()
    }

    /// From the first visible byte to the last.
    pub(crate) fn visible(&self) -> Range<u64> {
        self.start..self.line(self.height - 1).end
    }

    /// The lines that have a visible byte among `bytes`.
    pub(crate) fn lines_in(&self, bytes: &Range<u64>) -> Range<u32> {
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

    /// The pixels of line `y` that have a byte among `bytes`; not for planes.
    pub(crate) fn pixels_in(&self, y: u32, bytes: &Range<u64>) -> Range<u32> {
        let line = self.line(y);
        let (from, to) = (bytes.start.max(line.start), bytes.end.min(line.end));
        if from >= to {
            return 0..0;
        }
        if (from, to) == (line.start, line.end) {
            return 0..self.width; // most lines: saves the divisions
        }
        let pixel = |n: u64| u32::try_from(n).unwrap_or(self.width).min(self.width);
        let size = self.format.bytes();
        pixel((from - line.start) / size)..pixel((to - line.start).div_ceil(size))
    }

    /// The same as a raster of planes, for a planar mode.
    pub(crate) fn raster(&self, vram: u64) -> Raster {
        let address = |bytes: u64| u32::try_from(bytes / 4).unwrap_or(u32::MAX);
        // Addresses do not wrap: all visible bytes lie in video memory.
        let mask = address(vram).next_power_of_two() - 1;
        Raster {
            start: address(self.start),
            step: address(self.stride),
            mask,
            row_scans: 1,
            doubled: false,
            preset: 0,
            pan: self.pan,
            split: u32::MAX,
            split_start: 0,
            split_pan: 0,
            interleave: [0; 2],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_in_a_range_is_what_shares_a_byte(
            (width, height, extra) in (1..40u32, 1..20u32, 0..10u32),
            (x, y) in (0..5u32, 0..5u32),
            (a, b) in (0..6000u64, 0..6000u64),
            depth in prop::sample::select(vec![8u32, 15, 16, 24, 32]),
        ) {
            let mode = Linear::new((width, height, depth), width + extra, (x, y), 1 << 20).unwrap();
            let bytes = a.min(b)..a.max(b);
            let shares = |line: &u32| mode.line(*line).any(|byte| bytes.contains(&byte));
            let expected: Vec<u32> = (0..height).filter(shares).collect();
            prop_assert_eq!(mode.lines_in(&bytes).collect::<Vec<_>>(), expected);
            for y in 0..height {
                let pixel = |x: &u32| {
                    let start = mode.line(y).start + u64::from(*x) * mode.format.bytes();
                    start < bytes.end && bytes.start < start + mode.format.bytes()
                };
                let expected: Vec<u32> = (0..width).filter(pixel).collect();
                let expected = if bytes.is_empty() { Vec::new() } else { expected };
                prop_assert_eq!(mode.pixels_in(y, &bytes).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn a_mode_must_fit_video_memory() {
        let vram = 640 * 480 * 4;
        assert!(Linear::new((640, 480, 32), 640, (0, 0), vram).is_ok());
        let refused = Linear::new((640, 480, 32), 640, (0, 1), vram).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "640x480 pixels from (0, 1) in lines of 640 need 1231360 bytes of video memory, there \
                are 1228800"
        );
        assert_eq!(
            Linear::new((0, 480, 32), 0, (0, 0), vram),
            Err(VbeError::Geometry { width: 0, height: 480 })
        );
        assert_eq!(Linear::new((640, 480, 9), 0, (0, 0), vram), Err(VbeError::Depth { depth: 9 }));
        let all_ones = u32::from(u16::MAX);
        let huge = Linear::new((16000, 4000, 32), all_ones, (all_ones, all_ones), vram);
        assert!(matches!(huge, Err(VbeError::TooLarge { .. })));
    }

    /// A surface takes no more than the largest video memory, whatever the depth.
    #[test]
    fn a_picture_has_a_limit_where_video_memory_is_none() {
        const VRAM: u64 = 256 << 20;
        for depth in [4, 8, 15, 16, 24, 32] {
            assert!(Linear::new((8192, 8192, depth), 0, (0, 0), VRAM).is_ok());
            let refused = Linear::new((8192, 8193, depth), 0, (0, 0), VRAM).unwrap_err();
            assert_eq!(refused.to_string(), "8192x8193 pixels: at most 67108864 are shown");
        }
        let pixels = VbeError::Pixels { width: 16000, height: 12000 };
        assert_eq!(Linear::new((16000, 12000, 4), 0, (0, 0), VRAM), Err(pixels));
    }
}
