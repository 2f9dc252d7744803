//! Draws text modes: only cells whose picture changed are drawn again.

use ram_block::{DirtySnapshot, PageSize, RamBlock, RamBlockError};

use crate::draw::blinks::Blinks;
use crate::draw::part::DrawnPart;
use crate::font;
use crate::modes::limits::LEGACY_BYTES;
use crate::modes::raster::Row;
use crate::modes::text::{BLINKING, Look, Text, UNDERLINED};
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};
use crate::picture::text_screen::{TextCell, TextCursor, TextScreen};
use crate::registers::retrace::Blink;

/// The most pixels that a character is wide: nine dots of two.
const WIDEST: usize = 18;

/// Everything that a cell's picture depends on beside [`Drawn`] and the glyphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    character: u8,
    attribute: u8,
    /// Whether it blinks and is hidden now.
    hidden: bool,
    /// The first and the last row scan of the cursor, if it is in this cell and shown.
    cursor: Option<(u8, u8)>,
}

/// The layout of rows and the look of characters; if it changes, every cell is drawn again.
#[derive(Debug, PartialEq, Eq)]
struct Drawn {
    look: Look,
    /// The rows, with addresses of 0: scrolling moves cells, but does not change the layout.
    rows: Vec<Row>,
    columns: u32,
    blinks: bool,
    row_scans: u32,
    doubled: bool,
}

#[derive(Debug, Default)]
pub(super) struct TextPainter {
    /// Video memory as it was last read.
    memory: Vec<u8>,
    page: Vec<u8>,
    drawn: Option<Drawn>,
    /// By row and column.
    cells: Vec<Cell>,
    /// Whether the maps of `Look::fonts` have glyphs; if not, the built-in ones are shown.
    loaded: [bool; 2],
    /// What blinks in the cells.
    pub(super) blinks: Blinks,
}

/// Which glyphs of the two maps changed.
type Changed = [[bool; 256]; 2];

impl TextPainter {
    pub(super) fn draw(
        &mut self,
        vram: &RamBlock,
        text: &Text,
        blink: Blink,
        part: DrawnPart<'_>,
        surface: &mut Surface,
        damage: &mut Damage,
    ) -> Result<u64, RamBlockError> {
        let (mut changed, read) = match part {
            DrawnPart::Dirty(dirty, page) if self.drawn.is_some() => {
                self.read_dirty(vram, &text.look, dirty, page)?
            }
            _ => (([[true; 256]; 2]), self.read_all(vram)?),
        };
        let mut rows: Vec<Row> = text.rows(surface.height()).collect();
        let addresses: Vec<u32> =
            rows.iter_mut().map(|row| std::mem::take(&mut row.address)).collect();
        let columns = text.columns;
        let drawn = Drawn {
            look: text.look.clone(),
            rows,
            columns,
            blinks: text.blinks,
            row_scans: text.raster.row_scans,
            doubled: text.raster.doubled,
        };
        let width = columns as usize + 1; // one more if the picture is panned
        let mut all = !matches!(part, DrawnPart::Dirty(..));
        if self.drawn.as_ref() != Some(&drawn) {
            all = true;
            changed = [[true; 256]; 2];
        }
        if changed.iter().flatten().any(|changed| *changed) {
            self.find_loaded(&text.look, &mut changed);
        }
        self.cells.resize(width * addresses.len(), Cell::default());
        let mut cells = std::mem::take(&mut self.cells);
        self.blinks = Blinks::default();
        for ((row, address), cells) in drawn.rows.iter().zip(addresses).zip(cells.chunks_mut(width))
        {
            // The columns of a run of changed cells.
            let mut run = 0..0;
            let columns = columns + u32::from(row.pan > 0);
            for (column, cell) in (0..columns).zip(cells) {
                let address = address.wrapping_add(column) & text.raster.mask;
                let now = self.cell(text, blink, address);
                self.blinks.text |= text.blinks && now.attribute & BLINKING != 0;
                self.blinks.cursor |= text.has_cursor(address);
                let slot = usize::from(now.attribute >> 3 & 1);
                if all || *cell != now || changed[slot][usize::from(now.character)] {
                    *cell = now;
                    self.draw_cell(text, &now, row, column, surface);
                    if run.end != column || run.is_empty() {
                        damage.add(area(text, row, run, surface));
                        run = column..column;
                    }
                    run.end = column + 1;
                }
            }
            damage.add(area(text, row, run, surface));
        }
        self.cells = cells;
        self.drawn = Some(drawn);
        Ok(read)
    }

    fn read_all(&mut self, vram: &RamBlock) -> Result<u64, RamBlockError> {
        self.drawn = None;
        self.memory.resize(usize::try_from(LEGACY_BYTES).unwrap_or(0), 0);
        vram.read(0, &mut self.memory)?;
        Ok(LEGACY_BYTES)
    }

    /// Reads dirty pages; returns which glyphs of the maps in use changed, and the bytes read.
    fn read_dirty(
        &mut self,
        vram: &RamBlock,
        look: &Look,
        dirty: &DirtySnapshot,
        page_size: PageSize,
    ) -> Result<(Changed, u64), RamBlockError> {
        let mut changed = [[false; 256]; 2];
        let mut read = 0;
        for page in dirty.pages() {
            let from = page * page_size.bytes();
            let to = (from + page_size.bytes()).min(LEGACY_BYTES);
            if from >= to {
                continue;
            }
            let narrow = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
            let (from, len) = (narrow(from), narrow(to - from));
            self.page.resize(len, 0);
            vram.read(from as u64, &mut self.page)?;
            read += len as u64;
            let old = &mut self.memory[from..from + len];
            for (unit, (old, new)) in old.chunks_exact(4).zip(self.page.chunks_exact(4)).enumerate()
            {
                if old[2] == new[2] {
                    continue;
                }
                let at = from / 4 + unit;
                for (font, changed) in look.fonts.iter().zip(&mut changed) {
                    let glyph = at.wrapping_sub(*font as usize) / font::GLYPH_STRIDE;
                    if let Some(changed) = changed.get_mut(glyph) {
                        *changed = true;
                    }
                }
            }
            old.copy_from_slice(&self.page);
        }
        Ok((changed, read))
    }

    /// Updates `loaded`; if it changes for a map, marks all of that map's glyphs as changed.
    fn find_loaded(&mut self, look: &Look, changed: &mut Changed) {
        for ((font, loaded), changed) in look.fonts.iter().zip(&mut self.loaded).zip(changed) {
            let map = self.memory.chunks_exact(4).skip(*font as usize).take(font::MAP_BYTES);
            let now = map.into_iter().any(|unit| unit[2] != 0);
            if *loaded != now {
                *loaded = now;
                changed.fill(true);
            }
        }
    }

    fn cell(&self, text: &Text, blink: Blink, address: u32) -> Cell {
        let at = address as usize * 4;
        let (character, attribute) = (self.memory[at], self.memory[at + 1]);
        let scan = |row_scan: u32| u8::try_from(row_scan).unwrap_or(u8::MAX);
        let cursor = text.cursor.filter(|_| blink.cursor && text.has_cursor(address));
        Cell {
            character,
            attribute,
            hidden: text.blinks && attribute & BLINKING != 0 && !blink.text,
            cursor: cursor.map(|cursor| (scan(cursor.first), scan(cursor.last))),
        }
    }

    /// A row of a glyph, the leftmost dot in bit 7.
    fn glyph_row(&self, text: &Text, slot: usize, character: u8, row_scan: u32) -> u8 {
        let (look, row) = (&text.look, row_scan as usize);
        if !self.loaded[slot] {
            return font::fitted_row(character, row_scan, text.raster.row_scans);
        }
        let at = look.fonts[slot] as usize + usize::from(character) * font::GLYPH_STRIDE + row;
        self.memory[at * 4 + 2]
    }

    /// The characters of the picture that was drawn last, which `text` describes.
    pub(super) fn characters(&self, text: &Text, height: u32) -> TextScreen {
        let row_lines = text.raster.row_scans << u32::from(text.raster.doubled);
        let columns = text.columns;
        let mut screen = TextScreen { columns, row_lines, ..TextScreen::default() };
        let drawn = text.rows(height).zip(self.cells.chunks(columns as usize + 1));
        for (row, cells) in drawn.filter(|(row, _)| row.lines * 2 >= row_lines) {
            let panned = u32::from(row.pan * 2 > text.look.width());
            let number = screen.rows();
            for (column, cell) in (0..columns).zip(cells.iter().skip(panned as usize)) {
                let address = row.address.wrapping_add(column + panned) & text.raster.mask;
                if let Some(cursor) = text.cursor.filter(|_| text.has_cursor(address)) {
                    let last = cursor.last.min(text.raster.row_scans - 1);
                    screen.cursor.get_or_insert(TextCursor {
                        column,
                        row: number,
                        shown: cell.cursor.is_some(),
                        is_block: (last - cursor.first + 1) * 2 > text.raster.row_scans,
                    });
                }
                screen.cells.push(self.text_cell(text, cell));
            }
        }
        screen
    }

    fn text_cell(&self, text: &Text, cell: &Cell) -> TextCell {
        let (foreground, background) = colours(text, cell.attribute);
        let rgb = |[blue, green, red, _]: [u8; 4]| [red, green, blue];
        let slot = usize::from(cell.attribute >> 3 & 1);
        let rows = || {
            (0..text.raster.row_scans).map(|row| self.glyph_row(text, slot, cell.character, row))
        };
        let character = match self.loaded[slot] {
            true if rows().all(|row| row == 0) => ' ',
            true if rows().all(|row| row == 0xff) => '█',
            _ => font::character(cell.character),
        };
        TextCell {
            character,
            code: cell.character,
            font: u8::from(slot == 1 && text.look.fonts[0] != text.look.fonts[1]),
            foreground: rgb(foreground),
            background: rgb(background),
            underlined: text
                .look
                .underline
                .is_some_and(|row_scan| row_scan < text.raster.row_scans)
                && cell.attribute & 0x77 == UNDERLINED
                && !cell.hidden,
            hidden: cell.hidden,
        }
    }

    fn draw_cell(&self, text: &Text, cell: &Cell, row: &Row, column: u32, surface: &mut Surface) {
        let look = &text.look;
        let slot = usize::from(cell.attribute >> 3 & 1);
        let (foreground, background) = colours(text, cell.attribute);
        let ninth = look.line_graphics && (0xc0..=0xdf).contains(&cell.character);
        // The pixels of the cell that the picture shows.
        let left = column * look.width();
        let from = row.pan.saturating_sub(left) as usize;
        let to = look.width().min((surface.width() + row.pan).saturating_sub(left)) as usize;
        let x = (left as usize + from).saturating_sub(row.pan as usize);
        let mut pixels = [0; WIDEST * 4];
        for line in 0..row.lines {
            let row_scan = (row.skipped + line) >> u32::from(text.raster.doubled);
            let at_cursor = cell.cursor.is_some_and(|(first, last)| {
                (u32::from(first)..=u32::from(last)).contains(&row_scan)
            });
            let underlined =
                look.underline == Some(row_scan) && cell.attribute & 0x77 == UNDERLINED;
            let bits = if at_cursor || underlined && !cell.hidden {
                0x1ff
            } else if cell.hidden {
                0
            } else {
                let glyph = u32::from(self.glyph_row(text, slot, cell.character, row_scan));
                glyph << 1 | if ninth { glyph & 1 } else { 0 }
            };
            for (dot, out) in pixels.chunks_exact_mut(4 * look.scale as usize).take(9).enumerate() {
                let lit = bits >> (8 - dot) & 1 != 0;
                let colour = if lit { &foreground } else { &background };
                out.chunks_exact_mut(4).for_each(|out| out.copy_from_slice(colour));
            }
            if let Some(out) = surface.line_mut(row.y + line).get_mut(x * 4..(x + to - from) * 4) {
                out.copy_from_slice(&pixels[from * 4..to * 4]);
            }
        }
    }
}

/// The foreground and background colours of an attribute, in the surface's format.
fn colours(text: &Text, attribute: u8) -> ([u8; 4], [u8; 4]) {
    let colour = |number: u8| text.look.palette[usize::from(number & 0xf)].to_le_bytes();
    let background = attribute >> 4 & if text.blinks { 7 } else { 0xf };
    (colour(attribute), colour(background))
}

/// The area of the picture that cells of a row cover.
fn area(text: &Text, row: &Row, columns: std::ops::Range<u32>, surface: &Surface) -> Rect {
    let edge =
        |column: u32| (column * text.look.width()).saturating_sub(row.pan).min(surface.width());
    let (x, right) = (edge(columns.start), edge(columns.end));
    Rect { x, y: row.y, width: right - x, height: row.lines }
}
