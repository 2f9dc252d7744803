//! Each mode, set as by a driver and drawn on as by a program, compared with the picture by
//! definition.

mod common;

use common::modes::{self, Mode};
use common::monitor::Registers;
use common::{Board, Pc, difference};
use display_vga::Surface;
use proptest::prelude::*;

const VRAM: u64 = 4 << 20;

fn registers(board: &Board) -> Registers {
    Registers::parse(&board.vga.save())
}

/// Compares a mode of the VGA's own with the monitor's picture; returns it.
fn compare(board: &Board, what: &str) -> Surface {
    let picture = board.vga.screenshot().unwrap().unwrap_or_else(|| panic!("{what}: blank"));
    let monitor = registers(board).picture(&board.vram(), true, true).unwrap();
    assert_eq!(difference(&picture, &monitor), None, "{what}");
    let mut screen = board.screen();
    screen.refresh().unwrap();
    assert_eq!(difference(screen.surface(), &monitor), None, "{what}");
    picture
}

/// A colour for each pixel that differs from its neighbours'.
fn colour(x: u32, y: u32, colours: u32) -> u8 {
    u8::try_from((x * 7 + y * 13 + x * y / 11) % colours).unwrap()
}

/// The colour of a 4-bit index in `mode`.
fn seen(mode: &Mode, number: u8) -> [u8; 3] {
    dac(mode.attribute[usize::from(number & mode.attribute[18])])
}

/// The palette that `Board::set_mode` loads.
fn dac(index: u8) -> [u8; 3] {
    modes::palette(index).map(|level| level * 4 + level / 16)
}

fn expect(picture: &Surface, what: &str, pixel: impl Fn(u32, u32) -> [u8; 3], cell: (u32, u32)) {
    for y in 0..picture.height() {
        for x in 0..picture.width() {
            let expected = pixel(x / cell.0, y / cell.1);
            assert_eq!(picture.pixel(x, y), expected, "{what}: ({x}, {y})");
        }
    }
}

fn load_font(board: &Board, map: u64, seed: u8) {
    board.set(0x3c4, 2, 4);
    board.set(0x3c4, 4, 6);
    board.set(0x3ce, 5, 0);
    board.set(0x3ce, 6, 4);
    let glyphs: Vec<u8> = (0..8192u32)
        .map(|n| u8::try_from(n * 31 % 251).unwrap() ^ seed.rotate_left(n / 32 % 8))
        .collect();
    board.poke(0xa0000 + map, &glyphs);
}

#[test]
fn text_in_every_size_with_loaded_and_with_built_in_glyphs() {
    for mode in [&modes::TEXT_40X25, &modes::TEXT_80X25, &modes::TEXT_80X50, &modes::MONOCHROME] {
        let board = Board::new(VRAM);
        modes::set_mode(&board, mode);
        load_font(&board, 0, 0x55);
        load_font(&board, 0x6000, 0xaa);
        modes::set_mode(&board, mode);
        let base = if mode.miscellaneous & 1 != 0 { 0xb8000 } else { 0xb0000 };
        for n in 0..4000u64 {
            let [low, high, ..] = (n * 5).to_le_bytes();
            board.poke(base + 2 * n, &[low, high ^ low.rotate_left(3)]);
        }
        let index = if mode.miscellaneous & 1 != 0 { 0x3d4 } else { 0x3b4 };
        board.set(index, 0xf, 85);
        let picture = compare(&board, mode.name);
        let width = if mode.sequencer[1] & 1 != 0 { 640 } else { 720 };
        assert_eq!((picture.width(), picture.height()), (width, 400));
        // Two maps at a time, chosen by the attribute.
        board.set(0x3c4, 3, 0x24);
        compare(&board, mode.name);
        // Scrolled smoothly, in both directions, with a part that stays.
        board.set(index, 8, 0x25);
        board.set(index, 0xd, 80);
        for (panning, control) in [(3, mode.attribute[16]), (2, mode.attribute[16] | 0x20)] {
            board.input(index + 6);
            for (register, value) in [(0x33, panning), (0x30, control)] {
                board.out(0x3c0, register);
                board.out(0x3c0, value);
            }
            board.set(index, 0x18, 0x20);
            board.set(index, 7, mode.crtc[7] & !0x10);
            board.set(index, 9, mode.crtc[9] & !0x40);
            compare(&board, mode.name);
        }
    }
}

#[test]
fn a_guest_that_loads_no_glyphs_has_the_built_in_ones() {
    let board = Board::new(VRAM);
    modes::set_mode(&board, &modes::TEXT_80X25);
    board.poke(0xb8000, b"A\x07");
    let picture = board.vga.screenshot().unwrap().unwrap();
    let twin = Board::new(VRAM);
    twin.vga.set_text_mode().unwrap();
    twin.poke(0xb8000, b"A\x07");
    twin.set(0x3d4, 0xa, 0x20); // no cursor
    board.set(0x3d4, 0xa, 0x20);
    let loaded = twin.vga.screenshot().unwrap().unwrap();
    let shape = |picture: &Surface| -> Vec<bool> {
        (0..16 * 9).map(|n| picture.pixel(n % 9, n / 9) != picture.pixel(700, 390)).collect()
    };
    let picture_now = board.vga.screenshot().unwrap().unwrap();
    assert_ne!(shape(&picture), vec![false; 16 * 9]);
    assert_eq!(shape(&picture_now), shape(&loaded));
    compare(&twin, "text mode without a driver");
}

#[test]
fn what_blinks_is_shown_half_of_the_time() {
    let board = Board::new(VRAM);
    modes::set_mode(&board, &modes::TEXT_80X25);
    load_font(&board, 0, 0x33);
    modes::set_mode(&board, &modes::TEXT_80X25);
    board.poke(0xb8000, b"a\x87b\x07c\x80");
    let mut screen = board.screen();
    let frame = 900 * 449 * 1_000_000_000 / 28_322_000u64;
    for (frames, cursor, text) in
        [(1, true, true), (9, false, true), (17, true, false), (25, false, false), (33, true, true)]
    {
        board.clock.store(frame * frames, std::sync::atomic::Ordering::Relaxed);
        let monitor = registers(&board).picture(&board.vram(), cursor, text).unwrap();
        let refresh = screen.refresh().unwrap().clone();
        assert_eq!(difference(screen.surface(), &monitor), None, "after {frames} frames");
        assert!(refresh.full || refresh.damage.iter().all(|area| area.bottom() <= 16));
        assert!(refresh.next_blink.unwrap().as_millis() <= 115, "{refresh:?}");
    }
}

#[test]
fn planar_modes_in_every_way_of_writing() {
    for (mode, width, height, cell) in [
        (&modes::PLANAR_320X200, 320, 200, (2, 2)),
        (&modes::PLANAR_640X350, 640, 350, (1, 1)),
        (&modes::PLANAR_640X480, 640, 480, (1, 1)),
    ] {
        let board = Board::new(VRAM);
        modes::set_mode(&board, mode);
        let at = |x: u32, y: u32| 0xa0000 + u64::from(y * width / 8 + x / 8);
        for y in 0..height {
            for x in (0..width).step_by(8) {
                let pixels: [u8; 8] =
                    std::array::from_fn(|n| colour(x + u32::try_from(n).unwrap(), y, 16));
                let bits = |plane: u8| {
                    pixels.iter().fold(0u8, |byte, pixel| byte << 1 | pixel >> plane & 1)
                };
                match y % 4 {
                    // A plane at a time.
                    0 => {
                        for plane in 0..4 {
                            board.set(0x3c4, 2, 1 << plane);
                            board.poke(at(x, y), &[bits(plane)]);
                        }
                        board.set(0x3c4, 2, 0xf);
                    }
                    // A pixel at a time: set/reset through the bit mask, on latches.
                    1 => {
                        board.set(0x3ce, 1, 0xf);
                        for (n, pixel) in (0..).zip(pixels) {
                            board.set(0x3ce, 0, pixel);
                            board.set(0x3ce, 8, 0x80 >> n);
                            board.peek(at(x, y));
                            board.poke(at(x, y), &[0x5a]);
                        }
                        board.set(0x3ce, 1, 0);
                        board.set(0x3ce, 8, 0xff);
                    }
                    // Write mode 2: the processor's byte is the colour.
                    2 => {
                        board.set(0x3ce, 5, 2);
                        for (n, pixel) in (0..).zip(pixels) {
                            board.set(0x3ce, 8, 0x80 >> n);
                            board.peek(at(x, y));
                            board.poke(at(x, y), &[pixel]);
                        }
                        board.set(0x3ce, 8, 0xff);
                        board.set(0x3ce, 5, 0);
                    }
                    // Write mode 3: the byte is the mask.
                    _ => {
                        board.set(0x3ce, 5, 3);
                        for number in 0..16 {
                            let mask = pixels
                                .iter()
                                .fold(0u8, |byte, pixel| byte << 1 | u8::from(*pixel == number));
                            board.set(0x3ce, 0, number);
                            board.peek(at(x, y));
                            board.poke(at(x, y), &[mask]);
                        }
                        board.set(0x3ce, 0, 0);
                        board.set(0x3ce, 5, 0);
                    }
                }
            }
        }
        let picture = compare(&board, mode.name);
        assert_eq!((picture.width(), picture.height()), (width * cell.0, height * cell.1));
        expect(&picture, mode.name, |x, y| seen(mode, colour(x, y, 16)), cell);
        // Write mode 1 copies all planes at once: the upper half goes down.
        board.set(0x3ce, 5, 1);
        let half = u64::from(width / 8 * (height / 2));
        for n in 0..half {
            board.peek(0xa0000 + n);
            board.poke(0xa0000 + half + n, &[0]);
        }
        let picture = compare(&board, mode.name);
        expect(&picture, mode.name, |x, y| seen(mode, colour(x, y % (height / 2), 16)), cell);
    }
}

#[test]
fn cga_modes_with_their_interleaved_banks() {
    let board = Board::new(VRAM);
    modes::set_mode(&board, &modes::CGA_4);
    for y in 0..200u32 {
        for x in (0..320u32).step_by(4) {
            let byte = (x..x + 4).fold(0u8, |byte, x| byte << 2 | colour(x, y, 4));
            board.poke(0xb8000 + u64::from(y % 2 * 0x2000 + y / 2 * 80 + x / 4), &[byte]);
        }
    }
    let picture = compare(&board, "CGA, 4 colours");
    assert_eq!((picture.width(), picture.height()), (640, 400));
    expect(&picture, "CGA, 4 colours", |x, y| seen(&modes::CGA_4, colour(x, y, 4)), (2, 2));

    modes::set_mode(&board, &modes::CGA_2);
    for y in 0..200u32 {
        for x in (0..640u32).step_by(8) {
            let byte = (x..x + 8).fold(0u8, |byte, x| byte << 1 | colour(x, y, 2));
            board.poke(0xb8000 + u64::from(y % 2 * 0x2000 + y / 2 * 80 + x / 8), &[byte]);
        }
    }
    let picture = compare(&board, "CGA, 2 colours");
    expect(&picture, "CGA, 2 colours", |x, y| seen(&modes::CGA_2, colour(x, y, 2)), (1, 2));
}

#[test]
fn mode_13h_and_mode_x() {
    let board = Board::new(VRAM);
    modes::set_mode(&board, &modes::MODE_13H);
    for y in 0..200u32 {
        let line: Vec<u8> = (0..320).map(|x| colour(x, y, 256)).collect();
        board.poke(0xa0000 + u64::from(y) * 320, &line);
    }
    let picture = compare(&board, "13h");
    assert_eq!((picture.width(), picture.height()), (640, 400));
    expect(&picture, "13h", |x, y| dac(colour(x, y, 256)), (2, 2));

    modes::set_mode(&board, &modes::MODE_X);
    board.poke(common::BASE, &[0; 256 << 10]);
    // The second of three pages.
    const PAGE: u64 = 320 * 240 / 4;
    for plane in 0..4u32 {
        board.set(0x3c4, 2, 1 << plane);
        for y in 0..240u32 {
            let line: Vec<u8> = (0..80).map(|n| colour(n * 4 + plane, y, 256)).collect();
            board.poke(0xa0000 + PAGE + u64::from(y) * 80, &line);
        }
    }
    let [low, high, ..] = PAGE.to_le_bytes();
    board.set(0x3d4, 0xc, high);
    board.set(0x3d4, 0xd, low);
    let picture = compare(&board, "X");
    assert_eq!((picture.width(), picture.height()), (640, 480));
    expect(&picture, "X", |x, y| dac(colour(x, y, 256)), (2, 2));
    // Scrolled as by a game: by two pixels to the right, with a status line below.
    board.input(0x3da);
    for (register, value) in [(0x33, 4), (0x30, 0x61)] {
        board.out(0x3c0, register);
        board.out(0x3c0, value);
    }
    board.set(0x3d4, 0x18, 0x7f);
    board.set(0x3d4, 7, 0x3e);
    board.set(0x3d4, 9, 0x01);
    let picture = compare(&board, "X, scrolled");
    assert_eq!(picture.pixel(10, 10), dac(colour(7, 5, 256)));
    assert_eq!(picture.pixel(0, 384 + 10), dac(0));
}

#[test]
fn linear_modes_of_every_depth() {
    for depth in [4, 8, 15, 16, 24, 32] {
        let board = Board::new(VRAM);
        modes::set_mode(&board, &modes::PLANAR_640X480); // for the palette
        for (register, value) in [(1, 203), (2, 97), (3, depth), (4, 0x41)] {
            board.vbe(register, value);
        }
        let noise: Vec<u8> = (0..203u32 * 97 * 4 + 9000)
            .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0])
            .collect();
        board.poke(common::BASE, &noise);
        let check = |what: &str| {
            let picture = board.vga.screenshot().unwrap().unwrap();
            let monitor = registers(&board).vbe_picture(&board.vram());
            assert_eq!(difference(&picture, &monitor), None, "{depth} bits, {what}");
            for shares in [false, true] {
                let screen = board.screen();
                let mut screen = if shares { screen.zero_copy() } else { screen };
                screen.refresh().unwrap();
                assert_eq!(screen.surface().is_shared(), shares && depth == 32);
                assert_eq!(difference(screen.surface(), &monitor), None, "{depth} bits, {what}");
            }
        };
        check("at the start");
        board.vbe(6, 256);
        board.vbe(8, 13);
        board.vbe(9, 5);
        check("panned");
        board.vbe(4, 0);
        board.vbe(4, 0xe1);
        check("with a wide palette");
    }
}

prop_compose! {
    /// Registers of any kind, near those of a mode.
    fn tweaks()(
        mode in 0..modes::ALL.len(),
        tweaks in prop::collection::vec(
            prop_oneof![
                (Just(0x3d4u16),
                    prop::sample::select(
                        vec![7u8, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x13, 0x14, 0x17, 0x18]),
                            any::<u8>()),
                (Just(0x3c4), prop::sample::select(vec![1u8, 3, 4]), any::<u8>()),
                (Just(0x3ce), prop::sample::select(vec![5u8, 6]), any::<u8>()),
                (Just(0x3c0), 0..0x15u8, any::<u8>()),
                (Just(0x3d4), prop::sample::select(vec![1u8, 0x12]), 0..24u8),
            ], 0..8),
    ) -> (usize, Vec<(u16, u8, u8)>) {
        (mode, tweaks)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// For any registers: the picture equals the one that a beam would draw.
    #[test]
    fn any_registers_show_what_the_counters_make_of_them(
        (mode, tweaks) in tweaks(),
        seed in any::<u32>(),
        (width, height) in (0..12u8, 0..60u8),
    ) {
        let board = Board::new(1 << 20);
        let mode = modes::ALL[mode];
        modes::set_mode(&board, mode);
        board.out(0x3c2, mode.miscellaneous | 1);
        board.set(0x3d4, 0x11, 0);
        // Small pictures, for many of them.
        board.set(0x3d4, 1, width);
        board.set(0x3d4, 7, mode.crtc[7] & !0x42);
        board.set(0x3d4, 0x12, height);
        for (port, index, value) in tweaks {
            if port == 0x3c0 {
                board.input(0x3da);
                board.out(0x3c0, index | 0x20);
                board.out(0x3c0, value);
            } else {
                board.set(port, index, value);
            }
        }
        // Some of it equal: empty maps of glyphs would show the built-in ones.
        let noise: Vec<u8> = (0..1u32 << 18)
            .map(|n| ((n ^ seed).wrapping_mul(0x9e37_79b9) >> 15).to_le_bytes()[0])
            .collect();
        board.poke(common::BASE, &noise);
        let picture = board.vga.screenshot().unwrap();
        let monitor = registers(&board).picture(&noise, true, true);
        prop_assert_eq!(picture.is_some(), monitor.is_some());
        if let (Some(picture), Some(monitor)) = (picture, monitor) {
            prop_assert_eq!(difference(&picture, &monitor), None);
        }
    }
}
