//! A live picture in a terminal with 24-bit colours.

use std::fmt;
use std::io::{self, Write};

use crossterm::cursor::SetCursorStyle;
use crossterm::style::ResetColor;
use crossterm::{cursor, queue, terminal};

use crate::picture::surface::{Rect, Surface};
use crate::picture::text_screen::{TextCursor, TextScreen};
use crate::refresh::screen::Screen;

mod pen;
#[cfg(test)]
mod tests;

use crate::output::terminal::pen::{Glyph, Pen};

/// The fewest scan lines of a row of readable characters. Text modes with fewer are used to draw
/// pictures of blocks, such as the 160x100 mode.
const READABLE_LINES: u32 = 4;

/// Shows a screen in a terminal, and writes only the cells that change: the characters of a
/// text mode with their colours, and two pixels per cell for other modes.
///
/// A text larger than the terminal is clipped; the view is scrolled so that the guest's cursor
/// stays visible. The terminal's own cursor is placed at the guest's, and blinks with it, as do
/// blinking characters. Uses the terminal's alternate screen until it is dropped.
pub struct TerminalView<W: Write> {
    out: W,
    columns: u16,
    rows: u16,
    /// The contents of each cell, as last written.
    cells: Vec<Option<Glyph>>,
    shown: Shown,
    /// The terminal's cursor, if it is shown: column, row, and whether it is a block.
    cursor: Option<(u16, u16, bool)>,
}

/// What the terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Unknown contents: everything is to be written.
    Unknown,
    /// A picture of this width and height in pixels.
    Picture(u32, u32),
    /// A text of `size` columns and rows, of which the terminal shows the part from `from` on.
    Text { size: (u32, u32), from: (u32, u32) },
}

impl<W: Write> TerminalView<W> {
    /// Shows pictures on `columns` x `rows` cells of the terminal that reads `out`.
    ///
    /// # Errors
    ///
    /// If writing to `out` fails.
    pub fn new(out: W, columns: u16, rows: u16) -> io::Result<Self> {
        let (cells, shown, cursor) = (Vec::new(), Shown::Unknown, None);
        let mut view = Self { out, columns: 0, rows: 0, cells, shown, cursor };
        view.resize(columns, rows);
        queue!(view.out, terminal::EnterAlternateScreen, cursor::Hide)?;
        view.out.flush()?;
        Ok(view)
    }

    /// Sets the terminal's size. If it changed, the next call shows everything again.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        if (columns, rows) != (self.columns, self.rows) {
            (self.columns, self.rows) = (columns, rows);
            self.cells = vec![None; usize::from(columns) * usize::from(rows)];
            self.shown = Shown::Unknown;
        }
    }

    /// The columns and rows of the process's terminal, if it has one. Standard output may not be
    /// that terminal.
    pub fn terminal_size() -> Option<(u16, u16)> {
        terminal::size().ok().filter(|(columns, rows)| *columns > 0 && *rows > 0)
    }

    /// Shows the result of the last refresh of `screen`: the characters of a text mode whose rows
    /// have four lines or more, else the picture. Call it after every refresh, as it shows only
    /// the damage of the last one.
    ///
    /// # Errors
    ///
    /// If writing to the terminal fails; the next call shows everything again.
    pub fn show_screen(&mut self, screen: &Screen) -> io::Result<()> {
        let damage = &screen.last().damage;
        if damage.is_empty() && self.shown != Shown::Unknown {
            return Ok(());
        }
        match screen.text().filter(|text| text.row_lines() >= READABLE_LINES) {
            Some(text) => self.show_text(&text),
            None => self.show(screen.surface(), damage),
        }
    }

    /// Updates the cells that intersect `damage`, with two pixels per cell in any mode.
    ///
    /// # Errors
    ///
    /// If writing to the terminal fails; the next call shows everything again.
    pub fn show(&mut self, surface: &Surface, damage: &[Rect]) -> io::Result<()> {
        let shown = self.try_show(surface, damage);
        self.forget_if_failed(shown)
    }

    /// Writes the cells of `text` that differ from those on the terminal.
    ///
    /// # Errors
    ///
    /// If writing to the terminal fails; the next call shows everything again.
    pub fn show_text(&mut self, text: &TextScreen) -> io::Result<()> {
        let shown = self.try_show_text(text);
        self.forget_if_failed(shown)
    }

    fn forget_if_failed(&mut self, shown: io::Result<()>) -> io::Result<()> {
        if shown.is_err() {
            self.shown = Shown::Unknown;
        }
        shown
    }

    /// Clears the terminal, to show a picture or text of another size.
    fn begin(&mut self, shown: Shown) -> io::Result<()> {
        self.cells.fill(None);
        queue!(self.out, ResetColor, terminal::Clear(terminal::ClearType::All))?;
        queue!(self.out, cursor::Hide)?;
        (self.cursor, self.shown) = (None, shown);
        Ok(())
    }

    fn try_show(&mut self, surface: &Surface, damage: &[Rect]) -> io::Result<()> {
        let size = (surface.width(), surface.height());
        if size.0 == 0 || size.1 == 0 || self.cells.is_empty() {
            return Ok(());
        }
        let shown = Shown::Picture(size.0, size.1);
        let all = [surface.area()];
        let damage = if self.shown == shown { damage } else { &all };
        if self.shown != shown {
            self.begin(shown)?;
        }
        let (columns, rows) = self.fit(size);
        let mut pen = Pen::new(&mut self.out);
        for (row, cells) in (0..rows).zip(self.cells.chunks_mut(self.columns.into())) {
            for (column, cell) in (0..columns).zip(cells) {
                let area = cell_area(size, (columns, rows), (column, row));
                if !damage.iter().any(|damage| damage.intersects(&area)) {
                    continue;
                }
                let x = area.x + area.width / 2;
                let new = Glyph {
                    character: '▀',
                    foreground: surface.pixel(x, area.y + area.height / 4),
                    background: surface.pixel(x, area.y + area.height * 3 / 4),
                    underlined: false,
                };
                if cell.replace(new) != Some(new) {
                    pen.put(column, row, new)?;
                }
            }
        }
        pen.lift()?;
        self.out.flush()
    }

    fn try_show_text(&mut self, text: &TextScreen) -> io::Result<()> {
        if self.cells.is_empty() {
            return Ok(());
        }
        let size = (text.columns(), text.rows());
        let from = match self.shown {
            Shown::Text { size: before, from } if before == size => from,
            _ => (0, 0),
        };
        let from = self.window_from(from, text.cursor());
        match &mut self.shown {
            Shown::Text { size: before, from: scrolled } if *before == size => *scrolled = from,
            _ => self.begin(Shown::Text { size, from })?,
        }
        let place = |cursor: TextCursor| {
            let column = u16::try_from(cursor.column.checked_sub(from.0)?).ok()?;
            let row = u16::try_from(cursor.row.checked_sub(from.1)?).ok()?;
            Some((column, row, cursor.is_block))
        };
        let cursor = text.cursor().filter(|cursor| cursor.shown).and_then(place);
        let mut pen = Pen::new(&mut self.out);
        for (row, cells) in (0..self.rows).zip(self.cells.chunks_mut(self.columns.into())) {
            for (column, cell) in (0..self.columns).zip(cells) {
                let shown = text.cell(u32::from(column) + from.0, u32::from(row) + from.1);
                let Some(new) = shown.map(Glyph::from) else { break };
                if cell.replace(new) != Some(new) {
                    pen.put(column, row, new)?;
                }
            }
        }
        let has_written = pen.lift()?;
        // Writing moves the terminal's cursor.
        if cursor != self.cursor || cursor.is_some() && has_written {
            self.cursor = cursor;
            match cursor {
                Some((column, row, is_block)) => {
                    let style = match is_block {
                        true => SetCursorStyle::SteadyBlock,
                        false => SetCursorStyle::SteadyUnderScore,
                    };
                    queue!(self.out, cursor::MoveTo(column, row), style, cursor::Show)?;
                }
                None => queue!(self.out, cursor::Hide)?,
            }
        }
        self.out.flush()
    }

    /// The first column and row of a text that the terminal shows: as before, unless the cursor's
    /// position would be outside, whether the cursor is lit at the moment or not.
    fn window_from(&self, before: (u32, u32), cursor: Option<TextCursor>) -> (u32, u32) {
        let Some(cursor) = cursor else { return before };
        let follow = |before: u32, at: u32, cells: u16| {
            before.clamp((at + 1).saturating_sub(cells.into()), at)
        };
        (follow(before.0, cursor.column, self.columns), follow(before.1, cursor.row, self.rows))
    }

    /// The largest number of columns and rows with the picture's aspect ratio, if a cell is twice
    /// as high as it is wide.
    fn fit(&self, (width, height): (u32, u32)) -> (u16, u16) {
        let (columns, rows) = (u64::from(self.columns), u64::from(self.rows));
        let (width, height) = (u64::from(width), u64::from(height));
        let by_width = (columns, (columns * height / width / 2).max(1));
        let (columns, rows) = if by_width.1 <= rows {
            by_width
        } else {
            ((rows * 2 * width / height).clamp(1, columns), rows)
        };
        let narrow = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
        (narrow(columns), narrow(rows))
    }
}

/// The area of the picture that a cell shows.
fn cell_area(
    (width, height): (u32, u32),
    (columns, rows): (u16, u16),
    (column, row): (u16, u16),
) -> Rect {
    let edge = |length: u32, cells: u16, cell: u16| {
        u32::try_from(u64::from(length) * u64::from(cell) / u64::from(cells)).unwrap_or(length)
    };
    let (x, y) = (edge(width, columns, column), edge(height, rows, row));
    let (right, bottom) = (edge(width, columns, column + 1), edge(height, rows, row + 1));
    Rect { x, y, width: (right - x).max(1), height: (bottom - y).max(1) }
}

impl<W: Write> Drop for TerminalView<W> {
    fn drop(&mut self) {
        let style = SetCursorStyle::DefaultUserShape;
        let restored =
            queue!(self.out, ResetColor, style, cursor::Show, terminal::LeaveAlternateScreen);
        if let Err(error) = restored.and_then(|()| self.out.flush()) {
            log::warn!("The terminal cannot be restored: {error}");
        }
    }
}

impl<W: Write> fmt::Debug for TerminalView<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TerminalView")
            .field("columns", &self.columns)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}
