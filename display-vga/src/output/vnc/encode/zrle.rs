//! ZRLE, before it is compressed (RFC 6143, 7.7.6): tiles with sides of 64 pixels, each in the
//! shortest of five forms.

use crate::output::vnc::encode::palette::{Palette, pack, runs};
use crate::output::vnc::encode::tiles::{TILE, tiles};
use crate::output::vnc::format::Coder;

/// The most colours of a tile with palette and runs.
const MAX_COLOURS: usize = 127;

pub(super) fn encode(values: &[u32], width: usize, coder: &Coder, out: &mut Vec<u8>) {
    tiles(values, width, TILE as usize, |pixels, width| tile(pixels, width, coder, out));
}

fn tile(values: &[u32], width: usize, coder: &Coder, out: &mut Vec<u8>) {
    let size = coder.size();
    let palette = Palette::of(values, MAX_COLOURS);
    let (mut plain_runs, mut palette_runs) = (0, 0);
    for (_, length) in runs(values) {
        let more = 1 + (length - 1) / 255;
        plain_runs += size + more;
        palette_runs += if length == 1 { 1 } else { 1 + more };
    }
    let shortest = plain_runs.min(values.len() * size);

    if let Some(palette) = palette {
        let colours = palette.colours();
        let kind = u8::try_from(colours.len()).unwrap_or(0);
        if let [only] = colours {
            out.push(1);
            return coder.put(*only, out);
        }
        let bits = match colours.len() {
            2 => 1,
            3..=4 => 2,
            _ => 4,
        };
        let rows = values.len() / width;
        let packed = if kind <= 16 { rows * (width * bits).div_ceil(8) } else { usize::MAX };
        if packed.min(palette_runs) < shortest.saturating_sub(colours.len() * size) {
            out.push(if packed <= palette_runs { kind } else { 128 + kind });
            coder.put_all(colours, out);
            if packed <= palette_runs {
                return pack(&palette, values, width, bits, out);
            }
            for (value, length) in runs(values) {
                let number = palette.number(value);
                out.push(if length == 1 { number } else { 128 + number });
                if length > 1 {
                    put_length(length, out);
                }
            }
            return;
        }
    }
    if plain_runs < values.len() * size {
        out.push(128);
        for (value, length) in runs(values) {
            coder.put(value, out);
            put_length(length, out);
        }
    } else {
        out.push(0);
        coder.put_all(values, out);
    }
}

/// Encodes one less than the length, as a sum of bytes, of which only the last is not 255.
fn put_length(length: usize, out: &mut Vec<u8>) {
    let rest = length - 1;
    out.extend(std::iter::repeat_n(255, rest / 255));
    out.push(u8::try_from(rest % 255).unwrap_or(0));
}
