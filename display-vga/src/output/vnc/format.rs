//! A viewer's pixel format (RFC 6143, 7.4).

use thiserror::Error;

/// Why a pixel format is not supported.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum FormatError {
    #[error("Pixels of {bits} bits were asked for, they may have 8, 16 or 32")]
    Bits { bits: u8 },
    #[error("The maxima {max:?} at bits {shift:?} overlap or do not fit pixels of {bits} bits")]
    Colours { bits: u8, max: [u16; 3], shift: [u8; 3] },
    #[error("A colour map of {depth} bits was asked for, it may have no fewer than 8")]
    Map { depth: u8 },
}

/// The format of a pixel. Colours are in the order red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelFormat {
    bits: u8,
    depth: u8,
    big_endian: bool,
    true_colour: bool,
    max: [u16; 3],
    shift: [u8; 3],
}

/// Maxima and shifts of the colour map: three bits of red, three of green, two of blue.
const MAP: ([u16; 3], [u8; 3]) = ([7, 7, 3], [5, 2, 0]);

impl PixelFormat {
    /// The format of surfaces: 32 bits, little-endian, blue in the least significant byte.
    pub(crate) const NATIVE: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        true_colour: true,
        max: [255; 3],
        shift: [16, 8, 0],
    };

    pub(crate) fn parse(bytes: &[u8; 16]) -> Result<Self, FormatError> {
        let [bits, depth, big_endian, true_colour, r1, r0, g1, g0, b1, b0, red, green, blue, ..] =
            *bytes;
        let max = [[r1, r0], [g1, g0], [b1, b0]].map(u16::from_be_bytes);
        let format = Self {
            bits,
            depth,
            big_endian: big_endian != 0,
            true_colour: true_colour != 0,
            max,
            shift: [red, green, blue],
        };
        if !matches!(bits, 8 | 16 | 32) {
            return Err(FormatError::Bits { bits });
        }
        if !format.true_colour {
            let sound = depth == 0 || depth >= 8;
            return if sound { Ok(format) } else { Err(FormatError::Map { depth }) };
        }
        format.check_colours()?;
        Ok(format)
    }

    /// An error unless all colours lie within the pixel and do not overlap.
    fn check_colours(&self) -> Result<(), FormatError> {
        let mut taken = 0u64;
        for (max, shift) in self.max.into_iter().zip(self.shift) {
            let bits = (1u64 << (16 - max.leading_zeros())) - 1;
            let mask = bits.checked_shl(shift.into()).filter(|mask| mask >> shift == bits);
            match mask {
                Some(mask) if mask >> self.bits == 0 && mask & taken == 0 => taken |= mask,
                _ => {
                    let Self { bits, max, shift, .. } = *self;
                    return Err(FormatError::Colours { bits, max, shift });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let [r, g, b] = self.max.map(u16::to_be_bytes);
        let [red, green, blue] = self.shift;
        let (big_endian, true_colour) = (self.big_endian.into(), self.true_colour.into());
        [
            self.bits,
            self.depth,
            big_endian,
            true_colour,
            r[0],
            r[1],
            g[0],
            g[1],
            b[0],
            b[1],
            red,
            green,
            blue,
            0,
            0,
            0,
        ]
    }

    /// The colour map: red, green and blue, 16 bits each, of the pixel values from 0 on; `None` for
    /// true-colour formats.
    pub(crate) fn colour_map(&self) -> Option<Vec<[u16; 3]>> {
        let colour = |value: u16| {
            // Scales 0..=max to 0..=65535.
            let part = |n: usize| u32::from((value >> MAP.1[n]) & MAP.0[n]) * 65535;
            [0, 1, 2].map(|n| u16::try_from(part(n) / u32::from(MAP.0[n])).unwrap_or(u16::MAX))
        };
        (!self.true_colour).then(|| (0..256).map(colour).collect())
    }

    /// All bytes of a pixel: PIXEL of the specification.
    pub(crate) fn whole(&self) -> Coder {
        let (max, shift) = if self.true_colour { (self.max, self.shift) } else { MAP };
        let wire = Wire { bytes: self.bits / 8, big_endian: self.big_endian, shift: 0 };
        Coder::new(max, shift, wire)
    }

    /// Without an unused byte: CPIXEL of the specification.
    pub(crate) fn compact(&self) -> Coder {
        let mut coder = self.whole();
        if !self.true_colour || self.bits != 32 || self.depth > 24 {
            return coder;
        }
        let used = (0..3).fold(0u64, |used, n| used | u64::from(self.max[n]) << self.shift[n]);
        // The three least significant bytes if they hold all colours, else the other three.
        let (low, high) = (used < 1 << 24, used & 0xff == 0);
        if low || high {
            let shift = if (self.big_endian && high) || !low { 8 } else { 0 };
            coder.wire = Wire { bytes: 3, shift, ..coder.wire };
        }
        coder
    }

    /// Red, green and blue if these are whole bytes: TPIXEL of the Tight encoding.
    pub(crate) fn tight(&self) -> Coder {
        if self.true_colour && self.bits == 32 && self.depth == 24 && self.max == [255; 3] {
            let wire = Wire { bytes: 3, big_endian: true, shift: 0 };
            Coder::new([255; 3], [16, 8, 0], wire)
        } else {
            self.whole()
        }
    }
}

/// How a pixel's value is encoded as bytes.
#[derive(Clone, Copy, Debug)]
struct Wire {
    bytes: u8,
    big_endian: bool,
    /// Low bits of the value that are dropped.
    shift: u8,
}

/// Converts a surface's pixels to pixel values, and these to bytes.
#[derive(Debug)]
pub(crate) struct Coder {
    /// The part of the value for each byte of red, green and blue.
    tables: Box<[[u32; 256]; 3]>,
    wire: Wire,
}

impl Coder {
    fn new(max: [u16; 3], shift: [u8; 3], wire: Wire) -> Self {
        let mut tables = Box::new([[0; 256]; 3]);
        for ((table, max), shift) in tables.iter_mut().zip(max).zip(shift) {
            for (entry, byte) in table.iter_mut().zip(0u32..) {
                // The nearest shade of the viewer's format.
                let shade = (byte * u32::from(max) + 127) / 255;
                *entry = shade.checked_shl(shift.into()).unwrap_or(0);
            }
        }
        Self { tables, wire }
    }

    /// Appends the values of `pixels`: blue, green, red and an unused byte each.
    pub(crate) fn values(&self, pixels: &[u8], out: &mut Vec<u32>) {
        let [red, green, blue] = &*self.tables;
        out.extend(pixels.chunks_exact(4).map(|pixel| {
            let [b, g, r] = [pixel[0], pixel[1], pixel[2]].map(usize::from);
            red[r] | green[g] | blue[b]
        }));
    }

    /// Bytes per value.
    pub(crate) fn size(&self) -> usize {
        self.wire.bytes.into()
    }

    pub(crate) fn put(&self, value: u32, out: &mut Vec<u8>) {
        let (value, size) = (value >> self.wire.shift, self.size());
        if self.wire.big_endian {
            out.extend_from_slice(&value.to_be_bytes()[4 - size..]);
        } else {
            out.extend_from_slice(&value.to_le_bytes()[..size]);
        }
    }

    pub(crate) fn put_all(&self, values: &[u32], out: &mut Vec<u8>) {
        out.reserve(values.len() * self.size());
        values.iter().for_each(|value| self.put(*value, out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_surfaces_own_format_is_its_bytes() {
        let mut values = Vec::new();
        let coder = PixelFormat::NATIVE.whole();
        coder.values(&[1, 2, 3, 99, 0xff, 0, 0x80, 0], &mut values);
        let mut bytes = Vec::new();
        coder.put_all(&values, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 0, 0xff, 0, 0x80, 0]);
    }

    #[test]
    fn a_needless_byte_is_left_out_wherever_it_is() {
        let bytes = |big_endian, shift, depth| {
            let format = PixelFormat { big_endian, shift, depth, ..PixelFormat::NATIVE }.compact();
            let (mut values, mut out) = (Vec::new(), Vec::new());
            format.values(&[0xb0, 0x90, 0xd0, 0xee], &mut values);
            format.put_all(&values, &mut out);
            out
        };
        assert_eq!(bytes(false, [16, 8, 0], 24), [0xb0, 0x90, 0xd0]);
        assert_eq!(bytes(true, [16, 8, 0], 24), [0xd0, 0x90, 0xb0]);
        assert_eq!(bytes(false, [24, 16, 8], 24), [0xb0, 0x90, 0xd0]);
        assert_eq!(bytes(true, [24, 16, 8], 24), [0xd0, 0x90, 0xb0]);
        assert_eq!(bytes(false, [16, 8, 0], 32), [0xb0, 0x90, 0xd0, 0]);
        assert_eq!(bytes(false, [24, 8, 0], 24), [0xb0, 0x90, 0, 0xd0]);
    }

    #[test]
    fn what_makes_no_pixel_is_refused() {
        let native = PixelFormat::NATIVE;
        let parse = |format: PixelFormat| PixelFormat::parse(&format.to_bytes());
        assert_eq!(parse(native), Ok(native));
        assert_eq!(parse(PixelFormat { bits: 24, ..native }), Err(FormatError::Bits { bits: 24 }));
        for shift in [[16, 8, 1], [25, 8, 0], [255, 8, 0], [64, 8, 0], [8, 8, 0]] {
            let refused = parse(PixelFormat { shift, ..native });
            assert!(matches!(refused, Err(FormatError::Colours { .. })), "{shift:?}");
        }
        let map = PixelFormat { true_colour: false, bits: 8, depth: 8, ..native };
        assert_eq!(parse(map), Ok(map));
        assert_eq!(parse(PixelFormat { depth: 4, ..map }), Err(FormatError::Map { depth: 4 }));
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_are_a_format_or_refused(bytes: [u8; 16],
            bits in prop::sample::select(vec![8u8, 16, 32]), plausible: bool) {
            let mut bytes = bytes;
            if plausible {
                bytes[0] = bits;
                bytes[10..13].iter_mut().for_each(|shift| *shift %= bits);
            }
            if let Ok(format) = PixelFormat::parse(&bytes) {
                for coder in [format.whole(), format.compact(), format.tight()] {
                    let (mut values, mut out) = (Vec::new(), Vec::new());
                    coder.values(&[0x12, 0x34, 0x56, 0x78], &mut values);
                    coder.put_all(&values, &mut out);
                    prop_assert_eq!(out.len(), coder.size());
                    prop_assert!(u64::from(values[0]) < 1 << format.bits || coder.size() == 3);
                }
            }
        }
    }
}
