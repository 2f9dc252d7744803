//! The characters of a text mode, for outputs that print text instead of pixels.

/// The screen of a text mode: a grid of characters with their colours, as of the refresh that
/// drew it.
///
/// The grid has only whole characters. A panned picture is moved to the nearest whole column,
/// and a row of which less than half of the lines is visible (at either end of a smooth scroll,
/// or above a split) is left out. Characters of two pixels per dot and rows of doubled lines
/// are one cell each, as all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextScreen {
    pub(crate) columns: u32,
    /// By row and column.
    pub(crate) cells: Vec<TextCell>,
    pub(crate) cursor: Option<TextCursor>,
    pub(crate) row_lines: u32,
}

/// A character on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextCell {
    /// The character, by code page 437: see [`character`](Self::character).
    pub(crate) character: char,
    /// The code in video memory.
    pub code: u8,
    /// Which of the two fonts that the guest has selected draws it: 1 if attribute bit 3 selects
    /// the second one, and that differs from the first.
    pub font: u8,
    /// Red, green and blue of the character, from the DAC.
    pub foreground: [u8; 3],
    /// Red, green and blue of the background.
    pub background: [u8; 3],
    /// Whether it is underlined (monochrome modes).
    pub underlined: bool,
    /// Whether it blinks and is hidden at the moment.
    pub hidden: bool,
}

/// The cursor of a text mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextCursor {
    /// The column, from 0.
    pub column: u32,
    /// The row, from 0.
    pub row: u32,
    /// Whether it is visible at the moment: it blinks.
    pub shown: bool,
    /// Whether it covers more than half of the character's height; if not, it is a line.
    pub is_block: bool,
}

impl TextScreen {
    /// Characters of a row.
    pub fn columns(&self) -> u32 {
        self.columns
    }

    /// How many rows.
    pub fn rows(&self) -> u32 {
        let rows = self.cells.len().checked_div(self.columns as usize).unwrap_or(0);
        u32::try_from(rows).unwrap_or(u32::MAX)
    }

    /// Scan lines per row of the picture. Text modes with rows of one to three lines are used to
    /// draw pictures.
    pub fn row_lines(&self) -> u32 {
        self.row_lines
    }

    /// The cell at `column` of `row`; `None` outside the grid.
    pub fn cell(&self, column: u32, row: u32) -> Option<&TextCell> {
        let at = row as usize * self.columns as usize + column as usize;
        self.cells.get(at).filter(|_| column < self.columns)
    }

    /// The cursor, if the guest has enabled it and it is on the screen.
    pub fn cursor(&self) -> Option<TextCursor> {
        self.cursor
    }

    /// The readable text, a string per row; characters that are hidden or have the colour of the
    /// background are blanks.
    pub fn lines(&self) -> Vec<String> {
        let rows = self.cells.chunks(self.columns.max(1) as usize);
        rows.map(|row| row.iter().map(TextCell::visible).collect()).collect()
    }
}

impl TextCell {
    /// The character that the cell shows.
    ///
    /// A VGA has only glyphs: their meaning is unknown. This returns the character that code page
    /// 437 assigns to the code, in both fonts, unless the glyph in the guest's font cannot be that
    /// character: one without dots is a blank, and one with all dots a full block. For a guest that
    /// has loaded another code page, use [`code`](Self::code) and [`font`](Self::font).
    pub fn character(&self) -> char {
        self.character
    }

    /// The character, or a blank if it is not visible.
    pub(crate) fn visible(&self) -> char {
        let seen = !self.hidden && self.foreground != self.background;
        match self.character {
            '\u{a0}' => ' ',
            character if seen => character,
            _ => ' ',
        }
    }
}
