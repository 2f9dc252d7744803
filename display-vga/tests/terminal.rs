//! The contents of a terminal, checked by an independent terminal emulator.

mod common;

use std::cell::RefCell;
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use common::modes::{self, Mode};
use common::{BASE, Board, Pc};
use display_vga::{Screen, TerminalView, TextScreen};
use proptest::prelude::*;

const VRAM: u64 = 1 << 20;
const TEXT: u64 = 0xb8000;

type Rgb = [u8; 3];

/// The 16 colours of CGA, as a PC's firmware loads them into the DAC.
const COLOURS: [Rgb; 16] = [
    [0, 0, 0],
    [0, 0, 0xaa],
    [0, 0xaa, 0],
    [0, 0xaa, 0xaa],
    [0xaa, 0, 0],
    [0xaa, 0, 0xaa],
    [0xaa, 0x55, 0],
    [0xaa, 0xaa, 0xaa],
    [0x55, 0x55, 0x55],
    [0x55, 0x55, 0xff],
    [0x55, 0xff, 0x55],
    [0x55, 0xff, 0xff],
    [0xff, 0x55, 0x55],
    [0xff, 0x55, 0xff],
    [0xff, 0xff, 0x55],
    [0xff, 0xff, 0xff],
];

/// Collects what is written, until it is set to fail.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<(Vec<u8>, bool)>>);

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        if wire.1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        wire.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A board whose screen is shown in a terminal.
struct Watched {
    board: Board,
    screen: Screen,
    view: TerminalView<Wire>,
    wire: Wire,
    terminal: vt100::Parser,
}

impl Watched {
    fn new(board: Board, columns: u16, rows: u16) -> Self {
        let wire = Wire::default();
        let view = TerminalView::new(wire.clone(), columns, rows).unwrap();
        let (screen, terminal) = (board.screen(), emulator(columns, rows));
        Self { board, screen, view, wire, terminal }
    }

    /// In the text mode that firmware sets.
    fn in_text(columns: u16, rows: u16) -> Self {
        let board = Board::new(VRAM);
        board.vga.set_text_mode().unwrap();
        Self::new(board, columns, rows)
    }

    fn in_mode(mode: &Mode, columns: u16, rows: u16) -> Self {
        let board = Board::new(VRAM);
        modes::set_mode(&board, mode);
        Self::new(board, columns, rows)
    }

    /// Puts characters of one colour at a cell of a screen of 80 columns.
    fn print(&self, column: u64, row: u64, text: &[u8], attribute: u8) {
        let cells: Vec<u8> = text.iter().flat_map(|code| [*code, attribute]).collect();
        self.board.poke(TEXT + 2 * (80 * row + column), &cells);
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        self.view.resize(columns, rows);
        // A terminal that stays as it is keeps what it shows.
        let (before_rows, before_columns) = self.terminal.screen().size();
        if (before_columns.get(), before_rows.get()) != (columns, rows) {
            self.terminal = emulator(columns, rows);
        }
    }

    /// Refreshes, and shows it; returns what was written.
    fn show(&mut self) -> String {
        self.screen.refresh().unwrap();
        self.view.show_screen(&self.screen).unwrap();
        let bytes = std::mem::take(&mut self.wire.0.borrow_mut().0);
        self.terminal.process(&bytes);
        String::from_utf8(bytes).unwrap()
    }

    fn row(&self, row: u16) -> String {
        let columns = self.terminal.screen().size().1.get();
        self.terminal.screen().rows(0, columns).nth(row.into()).unwrap()
    }

    /// The character of a cell, its foreground and background; equal ones for a blank.
    fn cell(&self, column: u16, row: u16) -> (String, Rgb, Rgb) {
        let cell = self.terminal.screen().cell(row, column).unwrap();
        let background = rgb(cell.bgcolor());
        let is_blank = cell.contents() == " ";
        let foreground = if is_blank { background } else { rgb(cell.fgcolor()) };
        (cell.contents().to_owned(), foreground, background)
    }

    /// The terminal's cursor, if it is visible: column and row.
    fn cursor(&self) -> Option<(u16, u16)> {
        let screen = self.terminal.screen();
        let (row, column) = screen.cursor_position();
        (!screen.hide_cursor()).then_some((column, row))
    }

    /// The text that is printed, if it is one.
    fn text(&self) -> Option<TextScreen> {
        self.screen.text().filter(|text| text.row_lines() >= 4)
    }

    /// A cell that differs from the text, whose position in the terminal follows from the cursors;
    /// `None` if one of them is not visible.
    fn wrong_cell(&self) -> Option<(u16, u16)> {
        let (text, place) = (self.text()?, self.cursor()?);
        let cursor = text.cursor()?;
        let from = (cursor.column - u32::from(place.0), cursor.row - u32::from(place.1));
        let (rows, columns) = self.terminal.screen().size();
        let mut cells = (0..rows.get()).flat_map(|row| (0..columns.get()).map(move |at| (at, row)));
        cells.find(|&(column, row)| {
            let Some(cell) = text.cell(from.0 + u32::from(column), from.1 + u32::from(row)) else {
                return false;
            };
            let is_seen = !cell.hidden && cell.foreground != cell.background;
            let expected = match cell.character() {
                ' ' | '\u{a0}' => None,
                character => is_seen.then(|| character.to_string()),
            };
            let now = self.cell(column, row);
            now.2 != cell.background || seen(now) != expected
        })
    }

    fn wait(&self, milliseconds: u64) {
        self.board.clock.fetch_add(milliseconds * 1_000_000, Ordering::Relaxed);
    }
}

fn emulator(columns: u16, rows: u16) -> vt100::Parser {
    let [rows, columns] = [rows, columns].map(|cells| NonZeroU16::new(cells).unwrap());
    vt100::Parser::new(rows, columns, 0)
}

fn rgb(colour: vt100::Color) -> Rgb {
    match colour {
        vt100::Color::Rgb(r, g, b) => [r, g, b],
        other => panic!("{other:?} is none of the DAC's colours"),
    }
}

/// Whether what a cell has can be seen, as a string that is not empty.
fn seen((text, foreground, background): (String, Rgb, Rgb)) -> Option<String> {
    (text != " " && !text.is_empty() && foreground != background).then_some(text)
}

#[test]
fn characters_have_the_colours_of_their_attributes() {
    let mut pc = Watched::in_text(80, 25);
    // Attribute bit 7 is one of the background: no character blinks.
    pc.board.input(0x3da);
    for value in [0x30, 0x04] {
        pc.board.out(0x3c0, value);
    }
    for attribute in 0..=255u8 {
        let (column, row) = (u64::from(attribute & 0xf), u64::from(attribute >> 4));
        pc.print(column * 3, row, b"Aq", attribute);
    }
    pc.show();
    for attribute in 0..=255u8 {
        let (column, row) = (u16::from(attribute & 0xf) * 3, u16::from(attribute >> 4));
        let foreground = COLOURS[usize::from(attribute & 0xf)];
        let background = COLOURS[usize::from(attribute >> 4)];
        for (column, character) in [(column, "A"), (column + 1, "q")] {
            let cell = pc.cell(column, row);
            assert_eq!(cell.2, background, "attribute {attribute:#x}");
            match foreground == background {
                true => assert_eq!(seen(cell), None, "attribute {attribute:#x}"),
                false => {
                    assert_eq!((cell.0.as_str(), cell.1), (character, foreground));
                }
            }
        }
    }
    // A colour is what the DAC says, not a name.
    pc.board.out(0x3c8, 4);
    [1, 0x3f, 0x20].iter().for_each(|level| pc.board.out(0x3c9, *level));
    pc.show();
    assert_eq!(pc.cell(3 * 4, 0).1, [0x04, 0xff, 0x82]);
}

#[test]
fn codes_are_those_of_code_page_437() {
    let mut pc = Watched::in_text(80, 25);
    pc.print(0, 0, b"\xc9\xcd\xbb \xb3 \x8e\x84\x81 \xe1 \x01\x03\x10 \xb0\xb1\xb2\xdb", 0x1f);
    pc.print(60, 0, b"next", 0x1f);
    pc.show();
    let row = pc.row(0);
    assert!(row.starts_with("╔═╗ │ Ääü ß ☺♥► ░▒▓█"), "{row:?}");
    // However wide the terminal shows those, the cells after them are in their places.
    assert_eq!(pc.cell(60, 0).0, "n");
}

#[test]
fn only_what_changes_is_written() {
    let mut pc = Watched::in_text(80, 25);
    pc.board.set(0x3d4, 0xa, 0x20);
    pc.print(0, 3, b"Testing  4%", 7);
    assert!(pc.show().len() > 2000);
    assert_eq!(pc.show(), "");
    pc.print(9, 3, b"5", 7);
    let written = pc.show();
    assert_eq!(pc.row(3).trim_end(), "Testing 55%".replace("55", " 5"), "{written:?}");
    assert!(written.len() < 64 && written.matches(char::is_alphanumeric).count() > 0);
    // The same again costs nothing.
    pc.print(9, 3, b"5", 7);
    assert_eq!(pc.show(), "");
}

#[test]
fn the_cursor_is_the_terminals() {
    let mut pc = Watched::in_text(80, 25);
    let place = |pc: &Watched, address: u16| {
        let [high, low] = address.to_be_bytes();
        pc.board.set(0x3d4, 0xe, high);
        pc.board.set(0x3d4, 0xf, low);
    };
    place(&pc, 80 * 7 + 13);
    let underscore = pc.show();
    assert_eq!(pc.cursor(), Some((13, 7)));
    assert!(underscore.contains("\u{1b}[4 q"), "a line: {underscore:?}");
    // Writing cells does not leave it at another position.
    pc.print(40, 20, b"elsewhere", 7);
    pc.show();
    assert_eq!(pc.cursor(), Some((13, 7)));
    // As a block, and moved.
    pc.board.set(0x3d4, 0xa, 0);
    place(&pc, 80 * 24 + 79);
    assert!(pc.show().contains("\u{1b}[2 q"));
    assert_eq!(pc.cursor(), Some((79, 24)));
    // It blinks with the guest's: 8 frames of a seventieth of a second each.
    pc.wait(120);
    assert!(pc.show().len() < 16);
    assert_eq!(pc.cursor(), None);
    pc.wait(120);
    pc.show();
    assert_eq!(pc.cursor(), Some((79, 24)));
    // Outside the screen, and off.
    place(&pc, 80 * 25);
    pc.show();
    assert_eq!(pc.cursor(), None);
    place(&pc, 0);
    pc.show();
    assert_eq!(pc.cursor(), Some((0, 0)));
    pc.board.set(0x3d4, 0xa, 0x20);
    pc.show();
    assert_eq!(pc.cursor(), None);
    // At the end the terminal's own cursor style is restored.
    let Watched { view, wire, mut terminal, .. } = pc;
    drop(view);
    terminal.process(&wire.0.borrow().0);
    assert!(!terminal.screen().hide_cursor() && !terminal.screen().alternate_screen());
}

#[test]
fn characters_blink() {
    let mut pc = Watched::in_text(80, 25);
    pc.board.set(0x3d4, 0xa, 0x20);
    pc.print(0, 0, b"A", 0x97);
    pc.show();
    assert_eq!(pc.cell(0, 0), ("A".to_owned(), COLOURS[7], COLOURS[1]));
    pc.wait(240);
    pc.show();
    assert_eq!((seen(pc.cell(0, 0)), pc.cell(0, 0).2), (None, COLOURS[1]));
    pc.wait(240);
    pc.show();
    assert_eq!(seen(pc.cell(0, 0)).as_deref(), Some("A"));
}

#[test]
fn the_part_with_the_cursor_is_in_view() {
    let mut pc = Watched::in_text(40, 10);
    for row in 0..25u8 {
        pc.print(0, row.into(), &[b'a' + row], 7);
        pc.print(70, row.into(), &[b'A' + row], 7);
    }
    let at = |pc: &mut Watched, address: u16| {
        let [high, low] = address.to_be_bytes();
        pc.board.set(0x3d4, 0xe, high);
        pc.board.set(0x3d4, 0xf, low);
        pc.show();
        (pc.row(0).trim_end().to_owned(), pc.cursor())
    };
    assert_eq!(at(&mut pc, 0), ("a".to_owned(), Some((0, 0))));
    assert_eq!(at(&mut pc, 80 * 9 + 39), ("a".to_owned(), Some((39, 9))));
    assert_eq!(at(&mut pc, 80 * 24), ("p".to_owned(), Some((0, 9))));
    // As far as needed, and no further.
    assert_eq!(at(&mut pc, 80 * 16), ("p".to_owned(), Some((0, 1))));
    assert_eq!(at(&mut pc, 80 * 14), ("o".to_owned(), Some((0, 0))));
    assert_eq!(pc.wrong_cell(), None);
    let (row, cursor) = at(&mut pc, 80 * 14 + 79);
    assert_eq!((row.trim_start(), cursor), ("O", Some((39, 0))));
    // Also while it is dark.
    pc.wait(120);
    assert_eq!(at(&mut pc, 0), ("a".to_owned(), None));
    pc.wait(120);
    pc.resize(80, 25);
    pc.show();
    assert_eq!(pc.row(24).split_whitespace().collect::<String>(), "yY");
    // One row less than the text has, as terminals begin with.
    pc.resize(80, 24);
    assert_eq!(at(&mut pc, 80 * 24), ("b".to_owned() + &" ".repeat(69) + "B", Some((0, 23))));
    pc.resize(1, 1);
    assert_eq!(at(&mut pc, 80 * 24), ("y".to_owned(), Some((0, 0))));
}

#[test]
fn texts_of_all_sizes() {
    for (mode, columns, rows) in [
        (&modes::TEXT_40X25, 40, 25),
        (&modes::TEXT_80X25, 80, 25),
        (&modes::TEXT_80X50, 80, 50),
        (&modes::MONOCHROME, 80, 25),
    ] {
        let mut pc = Watched::in_mode(mode, 140, 60);
        let base = if mode.miscellaneous & 1 != 0 { 0xb8000 } else { 0xb0000 };
        for (column, row, code) in [(0, 0, b'a'), (columns - 1, rows - 1, b'z')] {
            pc.board.poke(base + 2 * (columns * row + column), &[code, 0x07]);
        }
        pc.show();
        let row = u16::try_from(rows - 1).unwrap();
        assert_eq!(pc.row(0).trim_end(), "a", "{}", mode.name);
        assert_eq!(pc.row(row).trim_end().len() as u64, columns, "{}", mode.name);
        assert_eq!(pc.row(row).trim_end().trim_start(), "z", "{}", mode.name);
    }
    // 132 columns, and each line shown twice.
    let mut pc = Watched::in_mode(&modes::TEXT_80X25, 140, 60);
    for (register, value) in [(0x11, 0), (1, 131), (0x13, 66), (9, 0xc7)] {
        pc.board.set(0x3d4, register, value);
    }
    pc.board.poke(TEXT + 2 * (132 * 24 + 131), b"z\x07");
    pc.show();
    assert_eq!((pc.row(24).trim_start(), pc.row(24).len()), ("z", 132));
}

#[test]
fn the_underscore_of_monochrome_modes() {
    let mut pc = Watched::in_mode(&modes::MONOCHROME, 80, 25);
    pc.board.poke(0xb0000, b"a\x01b\x07c\x09");
    pc.show();
    let lines = (0..3).map(|n| pc.terminal.screen().cell(0, n).unwrap().underline());
    // The mode's underline location is row scan 13, of 16.
    assert_eq!(lines.collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn a_panned_and_a_split_screen() {
    let mut pc = Watched::in_text(80, 25);
    for row in 0..60u8 {
        pc.print(0, row.into(), &[b'0' + row % 10, b'A' + row / 10, b'|'], 7);
    }
    let pan = |pc: &Watched, dots: u8| {
        pc.board.input(0x3da);
        pc.board.out(0x3c0, 0x33);
        pc.board.out(0x3c0, dots);
    };
    // Panned by three dots, and by six: those of a character are nine.
    pan(&pc, 2);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), "0A|");
    pan(&pc, 5);
    pc.show();
    // The cell after the last character of the row is visible now.
    assert_eq!(pc.row(0).split_whitespace().collect::<Vec<_>>(), ["A|", "1"]);
    pan(&pc, 8);
    // From row 30 on, and the first rows of video memory below line 160.
    let [high, low] = (80u16 * 30).to_be_bytes();
    pc.board.set(0x3d4, 0xc, high);
    pc.board.set(0x3d4, 0xd, low);
    pc.board.set(0x3d4, 0x18, 159);
    pc.board.set(0x3d4, 7, 0x0f);
    pc.board.set(0x3d4, 9, 0x0f);
    pc.show();
    let read: Vec<String> = (0..25).map(|row| pc.row(row).trim_end().to_owned()).collect();
    let expected: Vec<String> = (30..40)
        .chain(0..15)
        .map(|row| format!("{}{}|", row % 10, (b'A' + row / 10) as char))
        .collect();
    assert_eq!(read, expected);
    // Scrolled by half a row and more, the first one is gone.
    pc.board.set(0x3d4, 0x18, 0xff);
    pc.board.set(0x3d4, 7, 0x1f);
    pc.board.set(0x3d4, 9, 0x4f);
    for (scans, first) in [(0, "0D|"), (7, "0D|"), (9, "1D|"), (15, "1D|")] {
        pc.board.set(0x3d4, 8, scans);
        pc.show();
        assert_eq!(pc.row(0).trim_end(), first, "scrolled by {scans}");
        assert_eq!(pc.screen.text().unwrap().rows(), 25, "scrolled by {scans}");
    }
}

#[test]
fn texts_and_pictures_take_turns() {
    let mut pc = Watched::in_text(80, 25);
    pc.print(0, 0, b"before", 7);
    pc.show();
    pc.board.vga.set_mode(160, 100, 32).unwrap();
    pc.board.poke(BASE + 4 * (160 + 1), &[0x30, 0x20, 0x10, 0]); // the pixel of a cell's half
    pc.show();
    assert_eq!(pc.cell(0, 0), ("▀".to_owned(), [0x10, 0x20, 0x30], [0; 3]));
    assert_eq!((pc.cursor(), pc.screen.text()), (None, None));
    pc.board.vga.set_text_mode().unwrap();
    pc.print(0, 0, b"after", 7);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), "after");
    assert!(!(0..25).any(|row| pc.row(row).contains('▀')));
    assert_eq!(pc.cursor(), Some((0, 0)));
    // The screen off, and on again.
    pc.board.set(0x3c4, 1, 0x20);
    pc.show();
    assert!((0..80).all(|column| pc.cell(column, 0).1 == [0; 3] && pc.cell(column, 0).2 == [0; 3]));
    assert_eq!(pc.cursor(), None);
    pc.board.set(0x3c4, 1, 0);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), "after");
    // Another text of another size.
    modes::set_mode(&pc.board, &modes::TEXT_40X25);
    pc.show();
    assert_eq!(pc.screen.text().unwrap().columns(), 40);
}

/// A picture of 160x100 pixels is made of half blocks two lines high.
#[test]
fn a_text_of_rows_too_low_to_read_is_a_picture() {
    let mut pc = Watched::in_text(80, 50);
    pc.board.set(0x3d4, 9, 0x43);
    pc.show();
    assert_eq!(pc.screen.text().unwrap().rows(), 100);
    assert_ne!(pc.cell(0, 0).0, "▀");
    pc.board.set(0x3d4, 9, 0x41);
    pc.print(0, 0, b"\xde", 0x42);
    pc.show();
    assert_eq!(pc.screen.text().unwrap().row_lines(), 2);
    assert_eq!(pc.cell(0, 0).0, "▀");
}

#[test]
fn a_guests_font_decides_what_is_blank_and_what_is_full() {
    let mut pc = Watched::in_text(80, 25);
    let glyph = |pc: &Watched, map: u64, code: u8, rows: [u8; 16]| {
        let first = map * 0x2000 + u64::from(code) * 32;
        (first..).zip(rows).for_each(|(unit, row)| pc.board.poke(BASE + 4 * unit + 2, &[row]));
    };
    pc.print(0, 0, b"ABC", 7);
    glyph(&pc, 0, b'A', [0; 16]);
    glyph(&pc, 0, b'B', [0xff; 16]);
    glyph(&pc, 0, b'C', [0x81; 16]);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), " █C");
    // A glyph that changes under a character that does not.
    glyph(&pc, 0, b'C', [0; 16]);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), " █");
    // Two fonts at a time: attribute bit 3 chooses the second one.
    pc.board.set(0x3c4, 3, 0x04);
    (0..=255).for_each(|code| glyph(&pc, 2, code, [0x18; 16]));
    pc.print(0, 1, b"A", 0x07);
    pc.print(1, 1, b"A", 0x0f);
    pc.show();
    let text = pc.screen.text().unwrap();
    let fonts = [0, 1].map(|column| {
        let cell = text.cell(column, 1).unwrap();
        (cell.code, cell.font, cell.character())
    });
    assert_eq!(fonts, [(b'A', 0, ' '), (b'A', 1, 'A')]);
    assert_eq!(text.lines()[1].trim_end(), " A");
}

/// A guest that loads no glyphs has the built-in ones, by their codes.
#[test]
fn without_a_font_there_are_characters_all_the_same() {
    let mut pc = Watched::in_mode(&modes::TEXT_80X25, 80, 25);
    pc.print(0, 0, b"SeaBIOS", 7);
    pc.show();
    assert_eq!(pc.row(0).trim_end(), "SeaBIOS");
}

#[test]
fn a_terminal_that_refuses_is_shown_everything_again() {
    let mut pc = Watched::in_text(80, 25);
    pc.print(0, 0, b"first", 7);
    pc.show();
    pc.print(0, 1, b"second", 7);
    pc.wire.0.borrow_mut().1 = true;
    pc.screen.refresh().unwrap();
    pc.view.show_screen(&pc.screen).unwrap_err();
    pc.wire.0.borrow_mut().1 = false;
    pc.show();
    assert_eq!((pc.row(0).trim_end(), pc.row(1).trim_end()), ("first", "second"));
}

/// What a guest may do to the screen between two refreshes.
#[derive(Clone, Debug)]
enum Step {
    Print { at: u64, cells: Vec<u8> },
    Glyph { at: u64, row: u8 },
    Register { port: u16, index: u8, value: u8 },
    Attribute { index: u8, value: u8 },
    Mode(usize),
    Resize(u16, u16),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let crtc = prop::sample::select(vec![1u8, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x13, 0x18]);
    let register = prop_oneof![
        6 => crtc.prop_map(|index| (0x3d4, index)),
        1 => prop_oneof![Just(1u8), Just(3)].prop_map(|index| (0x3c4, index)),
    ];
    prop_oneof![
        4 => (0..8000u64, prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, cells)| Step::Print { at, cells }),
        1 => (0..0x2000u64, any::<u8>()).prop_map(|(at, row)| Step::Glyph { at, row }),
        3 => (register, any::<u8>())
            .prop_map(|((port, index), value)| Step::Register { port, index, value }),
        1 => (0..0x15u8, any::<u8>()).prop_map(|(index, value)| Step::Attribute { index, value }),
        1 => (0..modes::ALL.len()).prop_map(Step::Mode),
        1 => (1..100u16, 1..40u16).prop_map(|(columns, rows)| Step::Resize(columns, rows)),
        1 => (0..400u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 48,
        ..ProptestConfig::default()
    })]

    /// A terminal that is updated by damage shows the same as one that is redrawn.
    #[test]
    fn changes_add_up(steps in prop::collection::vec(step(), 1..40)) {
        let mut pc = Watched::in_text(80, 25);
        pc.show();
        for step in steps {
            match step {
                Step::Print { at, cells } => pc.board.poke(TEXT + at, &cells),
                Step::Glyph { at, row } => pc.board.poke(BASE + 4 * at + 2, &[row]),
                Step::Register { port, index, value } => pc.board.set(port, index, value),
                Step::Attribute { index, value } => {
                    pc.board.input(0x3da);
                    pc.board.out(0x3c0, index | 0x20);
                    pc.board.out(0x3c0, value);
                }
                Step::Mode(mode) => modes::set_mode(&pc.board, modes::ALL[mode]),
                Step::Resize(columns, rows) => pc.resize(columns, rows),
                Step::Wait(milliseconds) => pc.wait(milliseconds),
            }
            pc.show();
            let (rows, columns) = pc.terminal.screen().size();
            let (rows, columns) = (rows.get(), columns.get());
            // The visible part of a text depends on the former positions of the cursor.
            let is_cut = |text: TextScreen| {
                text.columns() > columns.into() || text.rows() > rows.into()
            };
            if pc.text().is_some_and(is_cut) {
                prop_assert_eq!(pc.wrong_cell(), None);
                continue;
            }
            let wire = Wire::default();
            let mut fresh = TerminalView::new(wire.clone(), columns, rows).unwrap();
            fresh.show_screen(&pc.screen).unwrap();
            let mut terminal = emulator(columns, rows);
            terminal.process(&wire.0.borrow().0);
            let row_cells = |row| (0..columns).map(move |column| (row, column));
            for (row, column) in (0..rows).flat_map(row_cells) {
                let [now, expected] = [&pc.terminal, &terminal].map(|terminal| {
                    let cell = terminal.screen().cell(row, column).unwrap();
                    let colour = (cell.contents() != " ").then(|| cell.fgcolor());
                    (cell.contents().to_owned(), colour, cell.bgcolor(), cell.underline())
                });
                prop_assert_eq!(now, expected, "column {}, row {}", column, row);
            }
            let cursor = |terminal: &vt100::Parser| {
                let screen = terminal.screen();
                (!screen.hide_cursor()).then(|| screen.cursor_position())
            };
            prop_assert_eq!(cursor(&pc.terminal), cursor(&terminal));
        }
    }
}
