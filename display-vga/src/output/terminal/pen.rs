//! Writes cells with few escape sequences: only changes of position and colour.

use std::io::{self, Write};

use crossterm::style::{
    Attribute, Color, Print, ResetColor, SetAttribute, SetBackgroundColor, SetForegroundColor,
};
use crossterm::{cursor, queue};

use crate::picture::text_screen::TextCell;

type Rgb = [u8; 3];

/// The contents of a cell of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glyph {
    pub(super) character: char,
    pub(super) foreground: Rgb,
    pub(super) background: Rgb,
    pub(super) underlined: bool,
}

impl From<&TextCell> for Glyph {
    fn from(cell: &TextCell) -> Self {
        let TextCell { foreground, background, underlined, .. } = *cell;
        Self { character: cell.visible(), foreground, background, underlined }
    }
}

/// Keeps the terminal's cursor position and colours.
pub(super) struct Pen<'a, W> {
    out: &'a mut W,
    at: Option<(u16, u16)>,
    foreground: Option<Rgb>,
    background: Option<Rgb>,
    underlined: bool,
    has_written: bool,
}

impl<'a, W: Write> Pen<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        let (at, foreground, background) = (None, None, None);
        Self { out, at, foreground, background, underlined: false, has_written: false }
    }

    pub(super) fn put(&mut self, column: u16, row: u16, glyph: Glyph) -> io::Result<()> {
        if self.at != Some((column, row)) {
            queue!(self.out, cursor::MoveTo(column, row))?;
        }
        let colour = |[r, g, b]: Rgb| Color::Rgb { r, g, b };
        // The foreground of a blank that is not underlined is invisible.
        let is_blank = glyph.character == ' ' && !glyph.underlined;
        if !is_blank && self.foreground.replace(glyph.foreground) != Some(glyph.foreground) {
            queue!(self.out, SetForegroundColor(colour(glyph.foreground)))?;
        }
        if self.background.replace(glyph.background) != Some(glyph.background) {
            queue!(self.out, SetBackgroundColor(colour(glyph.background)))?;
        }
        if self.underlined != glyph.underlined {
            self.underlined = glyph.underlined;
            let line =
                if glyph.underlined { Attribute::Underlined } else { Attribute::NoUnderline };
            queue!(self.out, SetAttribute(line))?;
        }
        queue!(self.out, Print(glyph.character))?;
        self.has_written = true;
        // Terminals differ in the width of some characters of code page 437: do not rely on the
        // cursor's position after them.
        let narrow = glyph.character.is_ascii() || glyph.character == '▀';
        self.at = narrow.then_some((column + 1, row));
        Ok(())
    }

    /// Restores the terminal's default colours. Returns whether anything was written.
    pub(super) fn lift(self) -> io::Result<bool> {
        if self.underlined {
            queue!(self.out, SetAttribute(Attribute::NoUnderline))?;
        }
        if self.has_written {
            queue!(self.out, ResetColor)?;
        }
        Ok(self.has_written)
    }
}
