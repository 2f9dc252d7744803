//! A live picture in a terminal with 24-bit colours.

use std::fmt;
use std::io::{self, Write};

use crossterm::style::{Color, Print, ResetColor, SetBackgroundColor, SetForegroundColor};
use crossterm::{cursor, queue, terminal};

use crate::surface::{Rect, Surface};

type Rgb = [u8; 3];

/// Shows a surface in a terminal, two pixels a character cell, and writes only the
/// cells that change.
///
/// The terminal's alternate screen is used until this is dropped.
pub struct TerminalView<W: Write> {
    out: W,
    columns: u16,
    rows: u16,
    /// Upper and lower colour of each cell, as last written.
    cells: Vec<Option<(Rgb, Rgb)>>,
    /// The picture's size when it was last shown.
    size: (u32, u32),
}

impl<W: Write> TerminalView<W> {
    /// Takes over `columns` x `rows` cells of the terminal that reads `out`.
    ///
    /// # Errors
    ///
    /// If `out` refuses.
    pub fn new(out: W, columns: u16, rows: u16) -> io::Result<Self> {
        let mut view = Self { out, columns: 0, rows: 0, cells: Vec::new(), size: (0, 0) };
        view.resize(columns, rows);
        queue!(view.out, terminal::EnterAlternateScreen, cursor::Hide)?;
        view.out.flush()?;
        Ok(view)
    }

    /// The terminal has `columns` x `rows` cells now. If that is new, everything is
    /// shown again.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        if (columns, rows) != (self.columns, self.rows) {
            (self.columns, self.rows) = (columns, rows);
            self.cells = vec![None; usize::from(columns) * usize::from(rows)];
            self.size = (0, 0);
        }
    }

    /// The columns and rows of the process's terminal, if it has one. Standard output
    /// may be something else.
    pub fn terminal_size() -> Option<(u16, u16)> {
        terminal::size().ok().filter(|(columns, rows)| *columns > 0 && *rows > 0)
    }

    /// Brings the cells up to date that show a part of `damage`.
    ///
    /// # Errors
    ///
    /// If the terminal refuses; the next call shows everything again.
    pub fn show(&mut self, surface: &Surface, damage: &[Rect]) -> io::Result<()> {
        let shown = self.try_show(surface, damage);
        if shown.is_err() {
            self.size = (0, 0);
        }
        shown
    }

    fn try_show(&mut self, surface: &Surface, damage: &[Rect]) -> io::Result<()> {
        let size = (surface.width(), surface.height());
        if size.0 == 0 || size.1 == 0 || self.cells.is_empty() {
            return Ok(());
        }
        let all = [surface.area()];
        let damage = if self.size == size { damage } else { &all };
        if self.size != size {
            self.cells.fill(None);
            queue!(self.out, ResetColor, terminal::Clear(terminal::ClearType::All))?;
            self.size = size;
        }
        let (columns, rows) = self.fit(size);
        for row in 0..rows {
            // Where the terminal's cursor is, if the last cell was written.
            let mut at = None;
            for column in 0..columns {
                let area = cell_area(size, (columns, rows), (column, row));
                if !damage.iter().any(|damage| damage.intersects(&area)) {
                    continue;
                }
                let x = area.x + area.width / 2;
                let colours = (
                    surface.pixel(x, area.y + area.height / 4),
                    surface.pixel(x, area.y + area.height * 3 / 4),
                );
                let cell = &mut self.cells
                    [usize::from(row) * usize::from(self.columns) + usize::from(column)];
                if *cell == Some(colours) {
                    continue;
                }
                *cell = Some(colours);
                if at != Some(column) {
                    queue!(self.out, cursor::MoveTo(column, row))?;
                }
                let colour = |[r, g, b]: Rgb| Color::Rgb { r, g, b };
                queue!(
                    self.out,
                    SetForegroundColor(colour(colours.0)),
                    SetBackgroundColor(colour(colours.1)),
                    Print('▀')
                )?;
                at = Some(column + 1);
            }
        }
        queue!(self.out, ResetColor)?;
        self.out.flush()
    }

    /// The largest number of columns and rows with the picture's proportions; a cell is
    /// taken to be twice as high as it is wide.
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

/// The pixels that a cell stands for.
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
        let restored = queue!(self.out, ResetColor, cursor::Show, terminal::LeaveAlternateScreen);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cells_that_change_are_written() {
        let mut surface = Surface::new(80, 48);
        let mut out = Vec::new();
        let mut view = TerminalView::new(&mut out, 80, 24).unwrap();
        view.show(&surface, &[]).unwrap();
        surface.line_mut(10)[4 * 7..4 * 7 + 4].copy_from_slice(&[3, 2, 1, 0]);
        view.show(&surface, &[Rect { x: 0, y: 10, width: 80, height: 1 }]).unwrap();
        drop(view);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('▀').count(), 80 * 24 + 1);
        assert!(text.contains("\u{1b}[6;8H\u{1b}[38;2;1;2;3m"), "{text:?}");
        assert!(text.ends_with("\u{1b}[?1049l"));
    }

    #[test]
    fn a_picture_keeps_its_proportions() {
        let view = TerminalView::new(Vec::new(), 200, 50).unwrap();
        assert_eq!(view.fit((640, 480)), (133, 50));
        assert_eq!(view.fit((1920, 480)), (200, 25));
        assert_eq!(view.fit((1, 10_000)), (1, 50));
    }
}
