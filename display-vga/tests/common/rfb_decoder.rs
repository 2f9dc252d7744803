//! Decodes rectangles strictly by RFC 6143 and the community's rfbproto: for tests of the
//! encoders, with which it shares no code.
#![allow(dead_code, unreachable_pub)] // each test uses a part

use std::io::Read;

use flate2::{Decompress, FlushDecompress};

/// A pixel format; colours are red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub bits: u8,
    pub depth: u8,
    pub big_endian: bool,
    pub true_colour: bool,
    pub max: [u16; 3],
    pub shift: [u8; 3],
}

impl Format {
    /// True colours of 32 bits, the first byte blue.
    pub const BGRX: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        true_colour: true,
        max: [255; 3],
        shift: [16, 8, 0],
    };

    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = self.bits;
        bytes[1] = self.depth;
        bytes[2] = u8::from(self.big_endian);
        bytes[3] = u8::from(self.true_colour);
        for n in 0..3 {
            bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&self.max[n].to_be_bytes());
            bytes[10 + n] = self.shift[n];
        }
        bytes
    }

    /// The pixel that is nearest to a colour.
    pub fn value(&self, rgb: [u8; 3]) -> u32 {
        (0..3).fold(0, |value, n| {
            // Half of the maximum is added before the division, so it rounds.
            let shade = (2 * u32::from(rgb[n]) * u32::from(self.max[n]) + 255) / 510;
            value | shade << self.shift[n]
        })
    }

    fn pixel(&self, bytes: &[u8]) -> u32 {
        let join = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        if self.big_endian { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) }
    }

    fn to_memory(self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    /// Which bytes of a pixel in memory a CPIXEL has.
    fn compact(&self) -> std::ops::Range<usize> {
        let all = (0..3).fold(0, |all, n| all | u32::from(self.max[n]) << self.shift[n]);
        let memory = self.to_memory(all);
        let small = self.true_colour && self.bits == 32 && self.depth <= 24;
        match memory {
            [_, _, _, 0] if small => 0..3,
            [0, _, _, _] if small => 1..4,
            _ => 0..usize::from(self.bits / 8),
        }
    }

    /// Whether a TPIXEL is red, green and blue.
    fn tight_rgb(&self) -> bool {
        self.true_colour && self.bits == 32 && self.depth == 24 && self.max == [255; 3]
    }
}

/// A viewer's zlib stream.
pub struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    pub fn read(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(bytes.len() * 4 + 4096);
        loop {
            let before = self.0.total_in();
            self.0.decompress_vec(bytes, &mut plain, FlushDecompress::Sync).expect("zlib data");
            bytes = &bytes[usize::try_from(self.0.total_in() - before).unwrap()..];
            if bytes.is_empty() && plain.len() < plain.capacity() {
                return plain;
            }
            plain.reserve(plain.len() + 4096);
        }
    }
}

/// Reads rectangles of one connection.
#[derive(Default)]
pub struct Decoder {
    zlib: Inflate,
    zrle: Inflate,
    tight: [Inflate; 4],
}

fn byte(from: &mut impl Read) -> u8 {
    take(from, 1)[0]
}

fn take(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).expect("more bytes");
    bytes
}

fn long(from: &mut impl Read) -> usize {
    take(from, 4).iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

impl Decoder {
    /// The pixels of a rectangle, by lines.
    pub fn rect(
        &mut self,
        encoding: i32,
        format: &Format,
        (width, height): (usize, usize),
        from: &mut impl Read,
    ) -> Vec<u32> {
        match encoding {
            0 => raw(format, width * height, from),
            5 => hextile(format, width, height, from),
            6 => {
                let length = long(from);
                let plain = self.zlib.read(&take(from, length));
                all_of(&plain, |from| raw(format, width * height, from))
            }
            7 => self.tight(format, width, height, from),
            16 => {
                let length = long(from);
                let plain = self.zrle.read(&take(from, length));
                all_of(&plain, |from| zrle(format, width, height, from))
            }
            other => panic!("encoding {other} was not asked for"),
        }
    }

    fn tight(
        &mut self,
        format: &Format,
        width: usize,
        height: usize,
        from: &mut impl Read,
    ) -> Vec<u32> {
        assert!(width <= 2048);
        let size = if format.tight_rgb() { 3 } else { usize::from(format.bits / 8) };
        let pixel = |from: &mut dyn Read| {
            let mut bytes = vec![0; size];
            from.read_exact(&mut bytes).expect("a pixel");
            if format.tight_rgb() {
                format.value([bytes[0], bytes[1], bytes[2]])
            } else {
                format.pixel(&bytes)
            }
        };
        let control = byte(from);
        for n in (0..4).filter(|n| control & 1 << n != 0) {
            self.tight[n] = Inflate::default();
        }
        let kind = control >> 4;
        if kind == 8 {
            return vec![pixel(from); width * height];
        }
        assert!(kind < 8, "no JPEG was asked for");
        let filter = if kind & 4 != 0 { byte(from) } else { 0 };
        let palette: Vec<u32> = match filter {
            0 => Vec::new(),
            1 => (0..=byte(from)).map(|_| pixel(from)).collect(),
            other => panic!("filter {other}"),
        };
        let length = match palette.len() {
            0 => width * height * size,
            1..=2 => width.div_ceil(8) * height,
            _ => width * height,
        };
        let plain = if length < 12 {
            take(from, length)
        } else {
            let mut compressed = 0;
            for (n, bits) in [7, 7, 8].into_iter().enumerate() {
                let part = usize::from(byte(from));
                compressed |= (part & ((1 << bits) - 1)) << (7 * n);
                if bits == 8 || part < 0x80 {
                    break;
                }
            }
            let compressed = take(from, compressed);
            self.tight[usize::from(kind & 3)].read(&compressed)
        };
        assert_eq!(plain.len(), length);
        match palette.len() {
            0 => all_of(&plain, |from| (0..width * height).map(|_| pixel(from)).collect()),
            1..=2 => indices(&plain, width, height, 1).map(|at| palette[at]).collect(),
            _ => plain.iter().map(|at| palette[usize::from(*at)]).collect(),
        }
    }
}

/// The result of `read`, which must consume all of `bytes`.
fn all_of<T>(bytes: &[u8], read: impl FnOnce(&mut &[u8]) -> T) -> T {
    let mut rest = bytes;
    let result = read(&mut rest);
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
    result
}

/// Numbers of `bits`, from the top of a byte; each line begins with a byte.
fn indices(
    bytes: &[u8],
    width: usize,
    height: usize,
    bits: usize,
) -> impl Iterator<Item = usize> + '_ {
    let line = (width * bits).div_ceil(8);
    assert_eq!(bytes.len(), line * height);
    (0..width * height).map(move |at| {
        let bit = at % width * bits;
        let byte = bytes[at / width * line + bit / 8];
        usize::from(byte << (bit % 8) >> (8 - bits))
    })
}

fn raw(format: &Format, count: usize, from: &mut impl Read) -> Vec<u32> {
    let size = usize::from(format.bits / 8);
    take(from, count * size).chunks(size).map(|bytes| format.pixel(bytes)).collect()
}

/// Tiles of a rectangle: left, top, width and height of each.
fn tiles(
    width: usize,
    height: usize,
    size: usize,
) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..height).step_by(size).flat_map(move |y| {
        let tile = move |x| (x, y, size.min(width - x), size.min(height - y));
        (0..width).step_by(size).map(tile)
    })
}

fn put(out: &mut [u32], stride: usize, (x, y): (usize, usize), width: usize, pixels: &[u32]) {
    for (row, line) in pixels.chunks(width).enumerate() {
        out[(y + row) * stride + x..][..width].copy_from_slice(line);
    }
}

fn hextile(format: &Format, width: usize, height: usize, from: &mut impl Read) -> Vec<u32> {
    let mut out = vec![0; width * height];
    let (mut background, mut foreground) = (None, None);
    for (x, y, columns, rows) in tiles(width, height, 16) {
        let kind = byte(from);
        if kind & 1 != 0 {
            put(&mut out, width, (x, y), columns, &raw(format, columns * rows, from));
            // "May not carry over".
            (background, foreground) = (None, None);
            continue;
        }
        if kind & 2 != 0 {
            background = Some(raw(format, 1, from)[0]);
        }
        let ground = background.expect("a background");
        let mut tile = vec![ground; columns * rows];
        assert!(kind & 20 != 20, "a foreground, and coloured rectangles");
        if kind & 4 != 0 {
            foreground = Some(raw(format, 1, from)[0]);
        }
        let count = if kind & 8 != 0 { byte(from) } else { 0 };
        for _ in 0..count {
            let colour = if kind & 16 != 0 {
                raw(format, 1, from)[0]
            } else {
                foreground.expect("a foreground")
            };
            let [place, size] = take(from, 2)[..] else { unreachable!() };
            let (left, top) = (usize::from(place >> 4), usize::from(place & 15));
            let (wide, high) = (usize::from(size >> 4) + 1, usize::from(size & 15) + 1);
            assert!(left + wide <= columns && top + high <= rows, "a rectangle leaves its tile");
            for row in top..top + high {
                tile[row * columns + left..][..wide].fill(colour);
            }
        }
        if kind & 16 != 0 {
            foreground = None;
        }
        put(&mut out, width, (x, y), columns, &tile);
    }
    out
}

fn zrle(format: &Format, width: usize, height: usize, from: &mut &[u8]) -> Vec<u32> {
    let compact = format.compact();
    let pixel = |from: &mut &[u8]| {
        let mut memory = [0; 4];
        let bytes = take(from, compact.len());
        memory[compact.clone()].copy_from_slice(&bytes);
        format.pixel(&memory[..usize::from(format.bits / 8)])
    };
    let run = |from: &mut &[u8]| {
        let mut length = 1;
        loop {
            let part = byte(from);
            length += usize::from(part);
            if part < 255 {
                return length;
            }
        }
    };
    let mut out = vec![0; width * height];
    for (x, y, columns, rows) in tiles(width, height, 64) {
        let kind = usize::from(byte(from));
        let count = columns * rows;
        let mut tile = Vec::new();
        match kind {
            0 => tile.extend((0..count).map(|_| pixel(from))),
            1 => tile.resize(count, pixel(from)),
            2..=16 => {
                let palette: Vec<u32> = (0..kind).map(|_| pixel(from)).collect();
                let bits = [0, 0, 1, 2, 2].get(kind).copied().unwrap_or(4);
                let bytes = take(from, (columns * bits).div_ceil(8) * rows);
                tile.extend(indices(&bytes, columns, rows, bits).map(|at| palette[at]));
            }
            128 => {
                while tile.len() < count {
                    let colour = pixel(from);
                    tile.resize(tile.len() + run(from), colour);
                }
            }
            130.. => {
                let palette: Vec<u32> = (128..kind).map(|_| pixel(from)).collect();
                while tile.len() < count {
                    let at = usize::from(byte(from));
                    let length = if at < 128 { 1 } else { run(from) };
                    tile.resize(tile.len() + length, palette[at & 127]);
                }
            }
            other => panic!("tile of kind {other}"),
        }
        assert_eq!(tile.len(), count);
        put(&mut out, width, (x, y), columns, &tile);
    }
    out
}
