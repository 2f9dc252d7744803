//! The characters of a text mode, for displays that print them instead of pixels.

/// What is on the screen in a text mode: a grid of characters with their colours, as of the
/// refresh that drew it.
///
/// A grid has whole characters only. A panned picture is moved to the nearest whole column,
/// and a row that shows less than half of its lines (at either end of a smooth scroll, or
/// above a split) is left out. Characters of two pixels a dot and rows of doubled lines are
/// one cell each, like all others.
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
    /// Which of the two fonts that the guest has chosen draws it: 1 where attribute bit 3
    /// asks for the second one and it is another than the first.
    pub font: u8,
    /// Red, green and blue of the character, as the DAC has them.
    pub foreground: [u8; 3],
    /// Red, green and blue of what is behind it.
    pub background: [u8; 3],
    /// Whether it has the underscore of monochrome modes.
    pub underlined: bool,
    /// Whether it blinks and is not to be seen at the moment.
    pub hidden: bool,
}

/// Where the cursor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextCursor {
    /// The column, from 0.
    pub column: u32,
    /// The row, from 0.
    pub row: u32,
    /// Whether it is to be seen: it blinks.
    pub shown: bool,
    /// Whether it covers more than half of the character; else it is a line.
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

    /// Scan lines of a row of the picture. Rows of one to three lines are a way to draw
    /// pictures with characters.
    pub fn row_lines(&self) -> u32 {
        self.row_lines
    }

    /// The cell at `column` of `row`; `None` outside the grid.
    pub fn cell(&self, column: u32, row: u32) -> Option<&TextCell> {
        let at = row as usize * self.columns as usize + column as usize;
        self.cells.get(at).filter(|_| column < self.columns)
    }

    /// The cursor, if the guest has it on, and on the screen.
    pub fn cursor(&self) -> Option<TextCursor> {
        self.cursor
    }

    /// What can be read on the screen, a string a row; characters that are hidden or have the
    /// colour of what is behind them are blanks.
    pub fn lines(&self) -> Vec<String> {
        let rows = self.cells.chunks(self.columns.max(1) as usize);
        rows.map(|row| row.iter().map(TextCell::visible).collect()).collect()
    }
}

impl TextCell {
    /// The character that the cell shows.
    ///
    /// A VGA has glyphs, and nobody says what they mean. It is taken for the character that
    /// code page 437 gives to the code, in both fonts, except where the shape in the guest's
    /// font cannot be that: a glyph without a dot is a blank, and one of nothing but dots a full
    /// block. Who knows that the guest has loaded another code page has [`code`](Self::code) and
    /// [`font`](Self::font).
    pub fn character(&self) -> char {
        self.character
    }

    /// The character, or a blank if it cannot be seen.
    pub(crate) fn visible(&self) -> char {
        let seen = !self.hidden && self.foreground != self.background;
        match self.character {
            '\u{a0}' => ' ',
            character if seen => character,
            _ => ' ',
        }
    }
}
