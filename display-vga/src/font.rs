//! The built-in glyphs, and the characters of code page 437.

/// Bytes of a glyph, one a row.
pub(crate) const GLYPH_ROWS: usize = 16;
/// Bytes that a glyph takes in plane 2.
pub(crate) const GLYPH_STRIDE: usize = 32;
/// Bytes of a map of 256 glyphs in plane 2.
pub(crate) const MAP_BYTES: usize = 256 * GLYPH_STRIDE;

/// 256 glyphs of 8x16 dots; `font/README.md` says where they are from.
static GLYPHS: [u8; 256 * GLYPH_ROWS] = *include_bytes!("../font/cp437_8x16.bin");

/// The rows of a built-in glyph.
pub(crate) fn glyph(character: u8) -> &'static [u8] {
    &GLYPHS[usize::from(character) * GLYPH_ROWS..][..GLYPH_ROWS]
}

/// A row of a built-in glyph that is fitted to characters of `height` rows: first the blank rows
/// above and below are dropped, then neighbouring rows are joined.
pub(crate) fn fitted_row(character: u8, row: u32, height: u32) -> u8 {
    let rows = glyph(character);
    let (row, height) = (row as usize, height as usize);
    match height {
        // Most glyphs have blank rows above and below.
        14.. => rows.get(row + GLYPH_ROWS.saturating_sub(height) / 2).copied().unwrap_or(0),
        _ => {
            let edge = |row: usize| (row * GLYPH_ROWS / height.max(1)).min(GLYPH_ROWS);
            rows[edge(row)..edge(row + 1)].iter().fold(0, |joined, row| joined | row)
        }
    }
}

/// The built-in glyphs as a map in plane 2.
pub(crate) fn map() -> Vec<u8> {
    let mut map = vec![0; MAP_BYTES];
    for (character, glyph_bytes) in (0..=u8::MAX).zip(map.chunks_exact_mut(GLYPH_STRIDE)) {
        glyph_bytes[..GLYPH_ROWS].copy_from_slice(glyph(character));
    }
    map
}

const LOW: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
const HIGH: &str = "⌂ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The character that a code of page 437 shows.
pub(crate) fn character(code: u8) -> char {
    let found = match code {
        0..=31 => LOW.chars().nth(code.into()),
        32..=126 => Some(char::from(code)),
        127.. => HIGH.chars().nth(usize::from(code) - 127),
    };
    found.unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_a_glyph_of_its_own() {
        let blank = |code: &u8| glyph(*code).iter().all(|row| *row == 0);
        assert_eq!((0..=255).filter(blank).collect::<Vec<u8>>(), [0, 32, 255]);
        let glyphs: std::collections::BTreeSet<_> = (0..=255).map(glyph).collect();
        // Of shapes that look alike, and the blanks.
        assert!(glyphs.len() > 245, "{}", glyphs.len());
        let shape =
            |code: u8| glyph(code).iter().map(|row| format!("{row:08b}")).collect::<Vec<_>>();
        assert!(shape(0xdb).iter().all(|row| row == "11111111"));
        assert_eq!(shape(b'T')[2..12].iter().filter(|row| *row == "00010000").count(), 9);
    }

    #[test]
    fn glyphs_fit_characters_of_any_height() {
        for height in 1..=32 {
            let fitted =
                |code: u8| (0..height).map(|row| fitted_row(code, row, height)).collect::<Vec<_>>();
            let full: Vec<u8> = fitted(0xdb);
            let lit = full.iter().take_while(|row| **row == 0xff).count();
            assert_eq!(lit, (height as usize).min(16), "a full block of {height} rows");
            assert!((1..=255).all(|code| {
                glyph(code).iter().all(|row| *row == 0) || fitted(code).iter().any(|row| *row != 0)
            }));
        }
        assert!((0..16).all(|row| fitted_row(b'g', row, 16) == glyph(b'g')[row as usize]));
    }

    #[test]
    fn the_code_page_is_complete() {
        let codes: std::collections::BTreeSet<_> = (0..=255).map(character).collect();
        assert_eq!(codes.len(), 255); // 0 and 32 are both blank
        assert_eq!(
            [1, 65, 127, 128, 0xb3, 0xdb, 0xe1, 0xff].map(character),
            ['☺', 'A', '⌂', 'Ç', '│', '█', 'ß', '\u{a0}']
        );
    }
}
