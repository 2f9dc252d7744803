//! Tight without JPEG (the community's rfbproto, "Tight Encoding"): one colour, a palette,
//! or pixels.

use crate::output::vnc::encode::palette::{Palette, pack};
use crate::output::vnc::encode::zlib::Zlib;
use crate::output::vnc::format::Coder;

const FILL: u8 = 0x80;
/// A filter id follows.
const FILTER: u8 = 0x40;
const PALETTE: u8 = 1;
/// The fewest bytes that are compressed.
const MIN_COMPRESSED: usize = 12;
const MAX_COLOURS: usize = 256;

/// The zlib streams: of pixels, of two colours, of more.
#[derive(Debug, Default)]
pub(super) struct Tight {
    streams: [Option<Zlib>; 3],
}

impl Tight {
    /// Appends a rectangle; `plain` is an empty buffer.
    pub(super) fn encode(
        &mut self,
        values: &[u32],
        width: usize,
        coder: &Coder,
        level: u8,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let whole = values.len() * coder.size();
        let worth = |palette: &Palette| {
            let colours = palette.colours().len();
            colours <= 2 || colours * coder.size() + values.len() < whole
        };
        let stream = match Palette::of(values, MAX_COLOURS).filter(worth) {
            None => {
                out.push(0);
                coder.put_all(values, plain);
                0
            }
            Some(palette) => match palette.colours() {
                [only] => {
                    out.push(FILL);
                    return coder.put(*only, out);
                }
                colours => {
                    let (stream, bits) = if colours.len() == 2 { (1, 1) } else { (2, 8) };
                    out.extend_from_slice(&[stream << 4 | FILTER, PALETTE]);
                    out.push(u8::try_from(colours.len() - 1).unwrap_or(0));
                    coder.put_all(colours, out);
                    pack(&palette, values, width, bits, plain);
                    stream
                }
            },
        };
        if plain.len() < MIN_COMPRESSED {
            return out.extend_from_slice(plain);
        }
        let mut compressed = Vec::new();
        let stream = &mut self.streams[usize::from(stream)];
        stream.get_or_insert_with(|| Zlib::new(level)).append(plain, &mut compressed);
        put_length(compressed.len(), out);
        out.extend_from_slice(&compressed);
    }
}

/// Encodes a length, seven bits per byte, the lowest first; a third byte has eight. A set top bit
/// of the first two means that another byte follows.
fn put_length(length: usize, out: &mut Vec<u8>) {
    let bytes = u32::try_from(length).unwrap_or(0).to_le_bytes();
    let whole = u32::from_le_bytes(bytes);
    let part = |shift: u32, mask: u32| (whole >> shift & mask).to_le_bytes()[0];
    match whole {
        0..0x80 => out.push(part(0, 0x7f)),
        0x80..0x4000 => out.extend_from_slice(&[part(0, 0x7f) | 0x80, part(7, 0x7f)]),
        _ => out.extend_from_slice(&[part(0, 0x7f) | 0x80, part(7, 0x7f) | 0x80, part(14, 0xff)]),
    }
}
