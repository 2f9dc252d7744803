//! The monitor's EDID: a block of VESA's "Enhanced Extended Display
//! Identification Data Standard", release A, revision 2 (EDID 1.4), with timings by VESA's
//! "Coordinated Video Timings" with reduced blanking.

use thiserror::Error;

/// Bytes of a block.
pub(crate) const BYTES: usize = 128;

/// A preferred size that an EDID cannot describe.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "A monitor of {width}x{height} pixels was asked for; it can have from {} to {} a side",
    Edid::MIN_SIDE,
    Edid::MAX_SIDE
)]
pub struct EdidError {
    /// Width asked for, in pixels.
    pub width: u16,
    /// Height asked for, in lines.
    pub height: u16,
}

/// A monitor's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edid(pub(crate) [u8; BYTES]);

/// The standard timings beside the preferred one, with the code of their aspect ratio: 16:10,
/// 4:3, 5:4 and 16:9 are 0 to 3.
const STANDARD: [(u16, u16, u8); 8] = [
    (1920, 1200, 0),
    (1920, 1080, 3),
    (1680, 1050, 0),
    (1600, 1200, 1),
    (1440, 900, 0),
    (1280, 1024, 2),
    (1280, 960, 1),
    (1280, 720, 3),
];

impl Edid {
    /// The shortest side, in pixels.
    pub(crate) const MIN_SIDE: u16 = 64;
    /// The longest side, in pixels: the largest number of 12 bits.
    pub(crate) const MAX_SIDE: u16 = 0xfff;

    /// A monitor that prefers `width` x `height` pixels, and also shows the usual sizes that
    /// fit `vram` bytes at 32 bits a pixel.
    pub(crate) fn new(width: u16, height: u16, vram: u64) -> Result<Self, EdidError> {
        let sides = Self::MIN_SIDE..=Self::MAX_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(EdidError { width, height });
        }
        let mut block = [0; BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        put(8, &manufacturer(*b"DVG").to_be_bytes());
        put(10, &1u16.to_le_bytes());
        // Made in 2026, no week given; version 1.4; digital, 8 bits a colour.
        put(16, &[0, 36, 1, 4, 0xa0]);
        let [wide, high] = [width, height].map(centimetres);
        // Gamma 2.2; sRGB; the first timing is the native one.
        put(21, &[wide, high, 120, 0x06]);
        // The primaries and the white of sRGB.
        put(25, &[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
        // 720x400 at 70 Hz; 640x480, 800x600 and 1024x768 at 60 Hz.
        put(35, &[0xa1, 0x08, 0]);
        let fits = |(width, height, _): &&(u16, u16, u8)| {
            u64::from(*width) * u64::from(*height) * 4 <= vram
        };
        let unused = std::iter::repeat([1, 1]);
        let named = STANDARD.iter().filter(fits).map(|(width, _, proportions)| {
            let [code, ..] = (width / 8 - 31).to_le_bytes();
            [code, proportions << 6]
        });
        for (n, timing) in named.chain(unused).take(STANDARD.len()).enumerate() {
            put(38 + 2 * n, &timing);
        }
        put(54, &detailed_timing(width, height));
        // Range limits: 24 to 76 Hz, 10 to 255 kHz, up to 660 MHz; no other timing information.
        put(72, &descriptor(0xfd, &[24, 76, 10, 255, 66, 1, b'\n']));
        put(90, &descriptor(0xfc, b"display-vga\n"));
        put(108, &descriptor(0x10, &[]));
        let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        block[BYTES - 1] = sum.wrapping_neg();
        Ok(Self(block))
    }
}

impl Default for Edid {
    fn default() -> Self {
        Self([0; BYTES])
    }
}

/// Three letters of five bits.
fn manufacturer(letters: [u8; 3]) -> u16 {
    letters.iter().fold(0, |code, letter| code << 5 | u16::from(letter - b'A' + 1))
}

/// Centimetres of a side, at 100 pixels an inch.
fn centimetres(pixels: u16) -> u8 {
    u8::try_from(u32::from(pixels) * 254 / 10_000).unwrap_or(u8::MAX)
}

/// A descriptor other than a timing: a tag and its data, padded with blanks.
fn descriptor(tag: u8, data: &[u8]) -> [u8; 18] {
    let mut bytes = [if data.is_empty() { 0 } else { b' ' }; 18];
    bytes[..5].copy_from_slice(&[0, 0, 0, tag, 0]);
    bytes[5..5 + data.len()].copy_from_slice(data);
    bytes
}

/// A timing with reduced blanking, at 60 Hz or as near to it as the pixel clock allows.
fn detailed_timing(width: u16, height: u16) -> [u8; 18] {
    const BLANK: u32 = 160;
    const FRONT: u32 = 48;
    const SYNC: u32 = 32;
    const VERTICAL_FRONT: u32 = 3;
    const VERTICAL_SYNC: u32 = 6;
    /// In microseconds.
    const MIN_VERTICAL_BLANK: u32 = 460;
    /// The slowest pixel clock that EDID parsers accept, in Hz.
    const SLOWEST: u32 = 10_000_000;
    let (columns, lines) = (u32::from(width), u32::from(height));
    let clock_and_blank = |hertz: u32| {
        let shown = 1_000_000 / hertz - MIN_VERTICAL_BLANK;
        let least = MIN_VERTICAL_BLANK * lines / shown + 1;
        let slowest = (SLOWEST / hertz / (columns + BLANK) + 1).saturating_sub(lines);
        let blank = least.max(VERTICAL_FRONT + VERTICAL_SYNC + 6).max(slowest);
        // In units of 10 kHz, of which 25 are a step.
        let clock = (hertz * (lines + blank) * (columns + BLANK)).div_ceil(250_000) * 25;
        u16::try_from(clock).ok().map(|clock| (clock, blank))
    };
    let (clock, blank) =
        [60, 50, 30].into_iter().find_map(clock_and_blank).unwrap_or((u16::MAX, VERTICAL_FRONT));
    let low = |number: u32| number.to_le_bytes()[0];
    let high = |number: u32| number.to_le_bytes()[1];
    let millimetres = |pixels: u32| pixels * 254 / 1000;
    let (wide, tall) = (millimetres(columns), millimetres(lines));
    let [clock_low, clock_high] = clock.to_le_bytes();
    [
        clock_low,
        clock_high,
        low(columns),
        low(BLANK),
        high(columns) << 4 | high(BLANK),
        low(lines),
        low(blank),
        high(lines) << 4 | high(blank),
        low(FRONT),
        low(SYNC),
        low(VERTICAL_FRONT << 4 | VERTICAL_SYNC),
        0, // the high bits of the four before
        low(wide),
        low(tall),
        high(wide) << 4 | high(tall),
        0,
        0,
        0x1a, // digital, the horizontal sync positive, the vertical one negative
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_whole_and_says_its_size() {
        for (width, height) in [(64, 64), (1280, 800), (1920, 1080), (4095, 4095), (4095, 64)] {
            let Edid(block) = Edid::new(width, height, 16 << 20).unwrap();
            assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let number = |low: u8, high: u8| u16::from(low) | u16::from(high) << 8;
            assert_eq!(number(block[56], block[58] >> 4), width);
            assert_eq!(number(block[59], block[61] >> 4), height);
            let total = |active: u16, low: u8, high: u8| active + number(low, high & 0xf);
            let frame = u64::from(total(width, block[57], block[58]))
                * u64::from(total(height, block[60], block[61]));
            let hertz = u64::from(number(block[54], block[55])) * 10_000 / frame;
            assert!((29..=61).contains(&hertz), "{width}x{height} at {hertz} Hz");
        }
        for (width, height) in [(0, 480), (640, 63), (4096, 100), (100, u16::MAX)] {
            assert_eq!(Edid::new(width, height, 0), Err(EdidError { width, height }));
        }
    }

    #[test]
    fn standard_sizes_are_those_that_fit() {
        let named = |vram: u64| {
            let Edid(block) = Edid::new(640, 480, vram).unwrap();
            let timings = block[38..54].chunks(2).filter(|timing| *timing != [1, 1]);
            timings.map(|timing| (u16::from(timing[0]) + 31) * 8).collect::<Vec<_>>()
        };
        assert_eq!(named(16 << 20), [1920, 1920, 1680, 1600, 1440, 1280, 1280, 1280]);
        assert_eq!(named(4 << 20), [1280]);
        assert!(named(1 << 20).is_empty());
    }
}
