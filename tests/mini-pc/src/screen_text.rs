//! Text read back from a picture: each cell of it is compared with the glyphs that the guest
//! has in its font.

use std::collections::BTreeMap;

use display_vga::Surface;
use ram_block::{RamBlock, RamBlockError};

/// What code page 437 has from 0x80 on.
const UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Lines of a character in the text modes of 400 lines.
const HEIGHT: u32 = 16;
/// Columns of a glyph; a ninth is blank or repeats the eighth.
const WIDTH: u32 = 8;

/// Where there is no glyph like what is seen.
pub const UNKNOWN: char = '\u{fffd}';

/// A font: the characters by their glyphs, 16 bytes with the leftmost pixel highest.
#[derive(Debug)]
pub struct Font(BTreeMap<[u8; 16], char>);

impl Font {
    /// The font that is in plane 2 of `vram`, in the first of its maps of 32 bytes a glyph.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn from_vram(vram: &RamBlock) -> Result<Self, RamBlockError> {
        let mut map = vec![0; 256 * 32 * 4];
        vram.read(0, &mut map)?;
        let mut font = BTreeMap::new();
        let codes = (0x20..=0x7fu8).chain(0x80..=0xff).chain(0x01..=0x1f);
        for code in codes {
            let at = usize::from(code) * 32;
            let glyph = std::array::from_fn(|line| map[(at + line) * 4 + 2]);
            font.entry(glyph).or_insert(character(code));
        }
        Ok(Self(font))
    }

    /// The text of `picture`, a string for each row of 16 lines; `None` if it has not the
    /// size of a text mode of 40 or 80 columns.
    pub fn read(&self, picture: &Surface) -> Option<Vec<String>> {
        let cell = match picture.width() {
            360 | 720 => 9,
            320 | 640 => 8,
            _ => return None,
        };
        if picture.height() != 400 {
            return None;
        }
        let bytes = &*picture.bytes();
        let line_bytes = picture.width() as usize * 4;
        let row = |y: u32| {
            (0..picture.width() / cell).map(move |column| {
                let pixels = (0..HEIGHT).map(|line| {
                    let at = (y + line) as usize * line_bytes + (column * cell) as usize * 4;
                    &bytes[at..at + WIDTH as usize * 4]
                });
                self.character(pixels)
            })
        };
        let rows = (0..picture.height()).step_by(HEIGHT as usize);
        Some(rows.map(|y| row(y).collect()).collect())
    }

    /// The character whose glyph these lines show, in any two colours.
    fn character<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> char {
        let lines: Vec<&[u8]> = lines.collect();
        let colour = |pixel: &[u8]| [pixel[0], pixel[1], pixel[2]];
        let pixels = || lines.iter().flat_map(|line| line.chunks(4)).map(colour);
        let Some(first) = pixels().next() else { return UNKNOWN };
        let Some(second) = pixels().find(|pixel| *pixel != first) else { return ' ' };
        if pixels().any(|pixel| pixel != first && pixel != second) {
            return UNKNOWN;
        }
        let glyph = |foreground: [u8; 3]| -> [u8; 16] {
            std::array::from_fn(|line| {
                let bits = lines[line].chunks(4).map(colour);
                bits.fold(0, |bits, pixel| bits << 1 | u8::from(pixel == foreground))
            })
        };
        // Glyphs leave their left column free more often than not.
        let glyphs = [second, first].map(glyph);
        // A cursor fills whole lines, of which what is below cannot be told.
        let without_cursor =
            glyphs.map(|glyph| glyph.map(|line| if line == 0xff { 0 } else { line }));
        let all = glyphs.iter().chain(&without_cursor);
        all.filter_map(|glyph| self.0.get(glyph)).next().copied().unwrap_or(UNKNOWN)
    }
}

fn character(code: u8) -> char {
    match code {
        0x20..=0x7e => code.into(),
        0x80.. => UPPER.chars().nth(usize::from(code - 0x80)).unwrap_or(UNKNOWN),
        _ => '·',
    }
}

#[cfg(test)]
mod tests {
    use display_vga::Vga;

    use super::*;

    /// What the VGA draws is read back, in all colours.
    #[test]
    fn drawn_text_is_read() {
        let vga = Vga::new("vram", 1 << 20).unwrap();
        vga.set_text_mode().unwrap();
        let font = Font::from_vram(vga.vram()).unwrap();
        for colours in 1..0x80u8 {
            if colours & 7 == colours >> 4 {
                continue; // cannot be seen
            }
            for n in 0..96u64 {
                let cell = (0x20 + n % 95).to_le_bytes()[0];
                vga.vram().write((80 + n) * 4, &[cell, colours]).unwrap();
            }
            let picture = vga.screenshot().unwrap().unwrap();
            let read = font.read(&picture).unwrap();
            let expected = vga.text().unwrap().unwrap();
            assert_eq!(read[1..], expected[1..], "colours {colours:#x}");
        }
        assert_eq!(UPPER.chars().count(), 128);
    }
}
