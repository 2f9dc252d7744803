//! Characters and their attributes.

use crate::modes::raster::{Raster, Row};

/// A line of the underscore as attributes of a monochrome display ask for it.
pub(crate) const UNDERLINED: u8 = 0x01;
/// Of an attribute: the character blinks, in modes in which characters do.
pub(crate) const BLINKING: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) raster: Raster,
    /// Characters of a row.
    pub(crate) columns: u32,
    pub(crate) cursor: Option<Cursor>,
    /// [`BLINKING`] lets a character blink; else it is a bit of the background.
    pub(crate) blinks: bool,
    pub(crate) look: Look,
}

/// What every character's shape and colours depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Dots of a character's width: 8 or 9.
    pub(crate) dots: u32,
    /// Pixels of a dot: 2 with the halved clock, else 1.
    pub(crate) scale: u32,
    /// Where in plane 2 the glyphs are, of attributes with bit 3 clear and set.
    pub(crate) fonts: [u32; 2],
    /// The ninth dot of 0xC0 to 0xDF repeats the eighth.
    pub(crate) line_graphics: bool,
    /// The row scan on which underlined characters have their line.
    pub(crate) underline: Option<u32>,
    pub(crate) palette: [u32; 16],
}

/// The cursor, whether it is shown at the moment or not.
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
    /// Whether the character at `address` has the cursor, and row scans to show it on.
    pub(crate) fn has_cursor(&self, address: u32) -> bool {
        let here =
            |cursor: Cursor| cursor.address == address && cursor.first < self.raster.row_scans;
        self.cursor.is_some_and(here)
    }

    pub(crate) fn rows(&self, height: u32) -> impl Iterator<Item = Row> + '_ {
        self.raster.rows(height)
    }
}
