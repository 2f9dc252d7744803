//! The screen compared with a full redraw, and its failures.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::monitor::Registers;
use common::{BASE, Board, Pc, difference, modes, undamaged};
use display_vga::{RefreshError, Screen, Surface, Vga};
use memory_region::{ListenerError, MapError, MemoryListener, Section, ViewChange};
use proptest::prelude::*;

const VRAM: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Step {
    /// Into video memory, wherever it is.
    Store {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Each of the first bytes of video memory, as a film does.
    Frame {
        bytes: u64,
        value: u8,
    },
    /// Through the low window.
    Window {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// A glyph of one of the maps, as a driver loads it.
    Glyph {
        map: u8,
        code: u8,
        rows: [u8; 16],
    },
    Register {
        port: u16,
        index: u8,
        value: u8,
    },
    Port {
        port: u16,
        value: u8,
    },
    Vbe {
        register: u16,
        value: u16,
    },
    Mode(usize),
    VbeMode {
        width: u16,
        height: u16,
        depth: u16,
        virtual_width: u16,
    },
    Wait {
        nanoseconds: u64,
    },
    Refresh,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..64);
    let offset = prop_oneof![4 => 0..40_000u64, 1 => 0..VRAM - 64];
    let window = prop_oneof![0..0x1ffc0u64, 0x18000..0x19000u64];
    let register =
        prop_oneof![(Just(0x3d4u16), 0..0x19u8), (Just(0x3c4), 0..5u8), (Just(0x3ce), 0..9u8)];
    prop_oneof![
        8 => (offset, bytes()).prop_map(|(offset, bytes)| Step::Store { offset, bytes }),
        8 => (window, bytes()).prop_map(|(offset, bytes)| Step::Window { offset, bytes }),
        2 => (60_000..120_000u64, any::<u8>())
            .prop_map(|(bytes, value)| Step::Frame { bytes, value }),
        2 => (prop_oneof![Just(0), 0..8u8], any::<u8>(), any::<[u8; 16]>())
            .prop_map(|(map, code, rows)| Step::Glyph { map, code, rows }),
        3 => (register, any::<u8>())
            .prop_map(|((port, index), value)| Step::Register { port, index, value }),
        2 => (prop::sample::select(vec![0x3c0u16, 0x3c6, 0x3c8, 0x3c9, 0x3c9, 0x3da]), any::<u8>())
            .prop_map(|(port, value)| Step::Port { port, value }),
        1 => (prop::sample::select(vec![1u16, 2, 3, 4, 5, 6, 8, 9]),
            prop_oneof![0..200u16, Just(0x41), Just(0xe1), Just(8), Just(16)])
            .prop_map(|(register, value)| Step::Vbe { register, value }),
        2 => (0..modes::ALL.len()).prop_map(Step::Mode),
        1 => (1..150u16, 1..150u16, prop::sample::select(vec![4u16, 8, 15, 16, 24, 32]), 0..200u16)
            .prop_map(|(width, height, depth, virtual_width)| Step::VbeMode {
                width, height, depth, virtual_width
            }),
        2 => (0..400_000_000u64).prop_map(|nanoseconds| Step::Wait { nanoseconds }),
        8 => Just(Step::Refresh),
    ]
}

/// Does a step other than a refresh.
fn act(board: &Board, step: Step) {
    match step {
        Step::Store { offset, bytes } => board.poke(BASE + offset, &bytes),
        Step::Frame { bytes, value } => {
            let noise = |n: u64| n.wrapping_mul(151).to_le_bytes()[0] ^ value;
            board.poke(BASE, &(0..bytes).map(noise).collect::<Vec<_>>());
        }
        Step::Window { offset, bytes } => board.poke(Vga::WINDOW + offset, &bytes),
        Step::Glyph { map, code, rows } => {
            let units = (u64::from(map) * 0x2000 + u64::from(code) * 32..).zip(rows);
            units.for_each(|(unit, bits)| board.poke(BASE + 4 * unit + 2, &[bits]));
        }
        Step::Register { port, index, value } => board.set(port, index, value),
        Step::Port { port: 0x3da, .. } => {
            board.input(0x3da);
        }
        Step::Port { port, value } => board.out(port, value),
        Step::Vbe { register, value } => board.vbe(register, value),
        Step::Mode(mode) => modes::set_mode(board, modes::ALL[mode]),
        Step::VbeMode { width, height, depth, virtual_width } => {
            board.vga.set_mode(width, height, depth).unwrap();
            board.vbe(6, virtual_width);
        }
        Step::Wait { nanoseconds } => {
            board.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        Step::Refresh => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// After any stores, register writes and modes the picture equals a full redraw, and every
    /// pixel that changed is in the damage.
    #[test]
    fn a_refresh_is_a_full_redraw(
        first in 0..modes::ALL.len(),
        shares in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let board = Board::new(VRAM);
        let screen = board.screen();
        let mut screen = if shares { screen.zero_copy() } else { screen };
        modes::set_mode(&board, modes::ALL[first]);
        let mut before = Surface::default();
        for step in steps.into_iter().chain([Step::Refresh]) {
            let Step::Refresh = step else {
                act(&board, step);
                continue;
            };
            let refresh = screen.refresh().unwrap().clone();
            let now = screen.surface();
            match board.vga.screenshot().unwrap() {
                Some(picture) => prop_assert_eq!(difference(now, &picture), None),
                None => prop_assert!(now.bytes().iter().all(|byte| *byte == 0), "not blank"),
            }
            if !refresh.full {
                prop_assert_eq!(undamaged(&before, now, &refresh), None);
            } else if now.height() > 0 {
                prop_assert_eq!(&refresh.damage, &[now.area()]);
            }
            for rect in &refresh.damage {
                prop_assert!(rect.right() <= now.width() && rect.bottom() <= now.height());
            }
            let lines = (0..now.height())
                .filter(|y| refresh.damage.iter().any(|rect| (rect.y..rect.bottom()).contains(y)));
            prop_assert_eq!(refresh.lines as usize, lines.count());
            // Nothing has happened since.
            let idle = screen.refresh().unwrap().clone();
            prop_assert_eq!((idle.damage.len(), idle.bytes_copied, idle.full), (0, 0, false));
            let mut copy = vec![0; screen.surface().bytes().len()];
            let (area, line) = (screen.surface().area(), screen.surface().width() as usize * 4);
            screen.surface().read(area, &mut copy, line).unwrap();
            prop_assert!(copy == *screen.surface().bytes());
            before = Surface::clone(screen.surface());
            if before.is_shared() {
                // A shared surface would change with the next store.
                before = board.vga.screenshot().unwrap().unwrap();
            }
        }
    }
}

/// The cost of one character.
#[test]
fn a_character_redraws_its_cell() {
    let board = Board::new(VRAM);
    board.vga.set_text_mode().unwrap();
    board.set(0x3d4, 0xa, 0x20);
    let mut screen = board.screen();
    assert!(screen.refresh().unwrap().full);
    board.poke(0xb8000 + 2 * (80 * 7 + 11), b"x\x1f");
    let refresh = screen.refresh().unwrap().clone();
    let areas: Vec<_> =
        refresh.damage.iter().map(|rect| (rect.x, rect.y, rect.width, rect.height)).collect();
    assert_eq!(areas, [(99, 112, 9, 16)]);
    assert_eq!((refresh.lines, refresh.pages, refresh.full), (16, 1, false));
    // A glyph redraws the cells that show it.
    board.poke(BASE + 4 * (u64::from(b'x') * 32 + 3) + 2, &[0xff]);
    let refresh = screen.refresh().unwrap().clone();
    assert_eq!((refresh.damage.len(), refresh.lines, refresh.full), (1, 16, false));
    // The cursor redraws the cell that it leaves and the one that it enters.
    board.set(0x3d4, 0xa, 13);
    screen.refresh().unwrap();
    board.set(0x3d4, 0xf, 200);
    let refresh = screen.refresh().unwrap().clone();
    assert_eq!((refresh.damage.len(), refresh.lines, refresh.pages), (2, 32, 0));
    assert_eq!(refresh.damage[1].x, 40 * 9);
    let monitor = Registers::parse(&board.vga.save()).picture(&board.vram(), true, true).unwrap();
    assert_eq!(difference(screen.surface(), &monitor), None);
}

/// Actions of a guest that count as activity, and those that do not.
#[test]
fn a_guest_that_changes_nothing_is_idle() {
    let board = Board::new(VRAM);
    board.vga.set_text_mode().unwrap();
    let mut screen = board.screen();
    let mut active = |what: &dyn Fn()| {
        what();
        screen.refresh().unwrap().active
    };
    assert!(active(&|| ()));
    assert!(!active(&|| ()));
    assert!(!active(&|| board.out(0x3d4, 0xe))); // to read where the cursor is
    assert!(!active(&|| board.set(0x3d4, 0xe, 0)));
    assert!(active(&|| board.set(0x3d4, 0xe, 1)));
    assert!(active(&|| board.poke(0xb8000 + 4000, &[1])));
    assert!(active(&|| board.vbe(4, 1))); // a mode that cannot be shown
    assert!(!active(&|| board.poke(0xb8000, &[1])));
    assert!(active(&|| board.vga.set_mode(64, 48, 8).unwrap()));
    assert!(!active(&|| board.poke(BASE + (1 << 16), &[1])));
    for level in [1, 2] {
        board.out(0x3c8, 0);
        board.out(0x3c9, level);
        assert!(!active(&|| board.out(0x3c9, level)));
        assert!(active(&|| board.out(0x3c9, level)));
    }
}

/// Only a cursor or character that blinks on the screen schedules a refresh.
#[test]
fn a_text_in_which_nothing_blinks_is_an_idle_screen() {
    let board = Board::new(VRAM);
    board.vga.set_text_mode().unwrap();
    let mut screen = board.screen();
    let mut next_blink = |nanoseconds: u64| {
        board.clock.fetch_add(nanoseconds, Ordering::Relaxed);
        let refresh = screen.refresh().unwrap();
        (refresh.next_blink.map(|time| time.as_millis()), refresh.damage.len())
    };
    // 70 frames a second: the cursor changes after 8 of them, characters after 16.
    assert_eq!(next_blink(0), (Some(114), 1));
    board.set(0x3d4, 0xa, 0x20);
    assert_eq!(next_blink(0), (None, 1));
    assert_eq!(next_blink(130_000_000), (None, 0));
    // A character that blinks, where it is not shown, and where it is.
    board.poke(0xb8000 + 2 * 2000, b"x\x87");
    assert_eq!(next_blink(0), (None, 0));
    board.poke(0xb8000, b"x\x87");
    assert_eq!(next_blink(0), (Some(98), 1));
    assert_eq!(next_blink(100_000_000), (Some(226), 1));
    // The bit may also be one of the background.
    board.input(0x3da);
    board.out(0x3c0, 0x30);
    board.out(0x3c0, 4);
    assert_eq!(next_blink(0).0, None);
    // A cursor below the characters' last line, and one that is not on the screen.
    for (register, value) in [(0xa, 16), (0xb, 17)] {
        board.set(0x3d4, register, value);
    }
    assert_eq!(next_blink(0).0, None);
    board.set(0x3d4, 0xa, 14);
    assert!(next_blink(0).0.is_some());
    board.set(0x3d4, 0xe, 0x10);
    assert_eq!(next_blink(0).0, None);
    board.vga.set_mode(64, 48, 32).unwrap();
    assert_eq!(next_blink(0).0, None);
}

/// Glyphs of the second map are those of characters with bit 3 in their attribute.
#[test]
fn a_glyph_redraws_the_cells_of_its_map() {
    let board = Board::new(VRAM);
    board.vga.set_text_mode().unwrap();
    board.set(0x3d4, 0xa, 0x20);
    board.set(0x3c4, 3, 4); // the second map is the one at 16 KiB
    let row = |map: u64| BASE + 4 * (map + u64::from(b'x') * 32 + 3) + 2;
    board.poke(row(0x4000), &[1]); // a map that was loaded
    board.poke(0xb8000, b"x\x07x\x0fx\x07");
    let mut screen = board.screen();
    screen.refresh().unwrap();
    for (map, x, width) in [(0x4000, 9, 9), (0, 0, 9)] {
        board.poke(row(map), &[0xff]);
        let refresh = screen.refresh().unwrap().clone();
        assert_eq!((refresh.damage[0].x, refresh.damage[0].width), (x, width));
        assert_eq!(refresh.damage.len(), if map == 0 { 2 } else { 1 });
        assert_eq!(difference(screen.surface(), &board.vga.screenshot().unwrap().unwrap()), None);
    }
}

/// The first byte of a loaded glyph replaces all built-in ones; clearing the last one restores
/// them.
#[test]
fn built_in_glyphs_give_way_to_loaded_ones() {
    let board = Board::new(VRAM);
    modes::set_mode(&board, &modes::TEXT_80X25);
    board.set(0x3d4, 0xa, 0x20);
    board.poke(0xb8000, b"A\x07B\x07");
    let mut screen = board.screen();
    screen.refresh().unwrap();
    let built_in = screen.surface().clone();
    let row_of_a = BASE + 4 * (u64::from(b'A') * 32 + 5) + 2;
    for (bits, shows_built_in) in [(0x55, false), (0, true)] {
        board.poke(row_of_a, &[bits]);
        screen.refresh().unwrap();
        let picture = board.vga.screenshot().unwrap().unwrap();
        assert_eq!(difference(screen.surface(), &picture), None);
        assert_eq!(*screen.surface() == built_in, shows_built_in);
    }
}

/// An accelerator whose log fails now and then.
struct Fails(AtomicBool);

impl MemoryListener for Fails {
    fn name(&self) -> &str {
        "fails"
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        if self.0.load(Ordering::Relaxed) { Err("no log today".into()) } else { Ok(()) }
    }
}

#[test]
fn a_refresh_that_fails_is_made_up_for() {
    let board = Board::new(VRAM);
    let fails = Arc::new(Fails(false.into()));
    board.map.add_listener(&board.memory, fails.clone()).unwrap();
    let mut screen = board.screen();
    board.vga.set_mode(64, 48, 32).unwrap();
    screen.refresh().unwrap();

    board.poke(BASE + 400, &[1, 2, 3]);
    fails.0.store(true, Ordering::Relaxed);
    assert!(matches!(screen.refresh(), Err(RefreshError::Log(MapError::Sync { .. }))));
    fails.0.store(false, Ordering::Relaxed);
    screen.refresh().unwrap();
    assert_eq!(screen.surface().pixel(100 % 64, 100 / 64), [3, 2, 1]);

    // The mode goes off right after a failure: the old picture must go too.
    fails.0.store(true, Ordering::Relaxed);
    assert!(screen.refresh().is_err());
    board.vbe(4, 0);
    let refresh = screen.refresh().unwrap().clone();
    assert_eq!(refresh.damage, [screen.surface().area()]);
    assert!(screen.surface().bytes().iter().all(|byte| *byte == 0));
    assert_eq!(screen.refresh().unwrap().damage, []);
}

/// An accelerator that refuses the alias.
struct Refuses;

impl MemoryListener for Refuses {
    fn name(&self) -> &str {
        "refuses"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let low = |section: &Section| section.start() < BASE && section.ram().is_some();
        if change.added.iter().any(low) { Err("no slot is free".into()) } else { Ok(()) }
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn without_an_alias_the_low_window_is_the_same_but_slower() {
    let board = Board::new(VRAM);
    board.map.add_listener(&board.memory, Arc::new(Refuses)).unwrap();
    board.vga.set_mode(640, 480, 8).unwrap();
    for bank in [0u16, 2] {
        board.vbe(5, bank);
        board.poke(0xa0005, &[7, 8]);
        let at = (usize::from(bank) << 16) + 5;
        assert_eq!(board.vram()[at..at + 2], [7, 8]);
        assert_eq!([board.peek(0xa0006), board.peek(0xb0000)], [8, 0xff]);
    }
}

#[test]
fn a_display_has_one_screen() {
    let board = Board::new(VRAM);
    let first = board.screen();
    let second = Screen::new(board.map.clone(), board.vga.clone(), board.vram);
    assert!(matches!(second, Err(RefreshError::Log(MapError::Claimed { .. }))));
    drop(first);
    drop(board.screen());
    assert!(board.vga.vram().dirty().enabled().is_empty());

    let other = Vga::new("other", VRAM).unwrap();
    let wrong = Screen::new(board.map.clone(), other, board.vram).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "The region shows block \"vga.vram\", the display's video memory is \"other\""
    );
}
