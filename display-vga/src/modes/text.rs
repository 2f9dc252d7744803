//! Characters and their attributes.

use crate::modes::raster::{Raster, Row};

/// Attribute bits 0 to 2 and 4 to 6 of an underlined character on a monochrome display.
pub(crate) const UNDERLINED: u8 = 0x01;
/// Attribute bit: the character blinks, if `Text::blinks`.
pub(crate) const BLINKING: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) raster: Raster,
    /// Characters of a row.
    pub(crate) columns: u32,
    pub(crate) cursor: Option<Cursor>,
    /// Whether [`BLINKING`] makes a character blink; if not, it is a bit of the background colour.
    pub(crate) blinks: bool,
    pub(crate) look: Look,
}

/// What the shape and colours of all characters depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Dots of a character's width: 8 or 9.
    pub(crate) dots: u32,
    /// Pixels per dot: 2 with the halved clock, else 1.
    pub(crate) scale: u32,
    /// The offsets in plane 2 of the glyphs for attributes with bit 3 clear and set.
    pub(crate) fonts: [u32; 2],
    /// Whether the ninth dot of characters 0xC0 to 0xDF repeats the eighth.
    pub(crate) line_graphics: bool,
    /// The row scan of the underline.
    pub(crate) underline: Option<u32>,
    pub(crate) palette: [u32; 16],
}

/// The cursor, whether it is in its visible phase or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) address: u32,
    /// The first and the last row scan.
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Look {
    /// Pixels of a character's width.
    pub(crate) fn width(&self) -> u32 {
        self.dots * self.scale
    }
}

impl Text {
    /// Whether the cursor is on the character at `address`, and on one of its row scans.
    pub(crate) fn has_cursor(&self, address: u32) -> bool {
        let here =
            |cursor: Cursor| cursor.address == address && cursor.first < self.raster.row_scans;
        self.cursor.is_some_and(here)
    }

    pub(crate) fn rows(&self, height: u32) -> impl Iterator<Item = Row> + '_ {
        self.raster.rows(height)
    }
}
