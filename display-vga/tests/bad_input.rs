//! Registers with any values, also those that no driver writes.

mod common;

use common::{BASE, Board, Pc, abuse, difference, modes};
use proptest::prelude::*;

/// Every register with every value, in an order of `seed`'s.
fn writes(seed: u64) -> Vec<(u16, u8, u8)> {
    let registers = [(0x3d4u16, 0x19u8), (0x3c4, 5), (0x3ce, 9), (0x3c0, 0x15)];
    let indexed =
        registers.into_iter().flat_map(|(port, count)| (0..count).map(move |n| (port, n)));
    let plain = [0x3c2, 0x3c6, 0x3c7, 0x3c8, 0x3c9, 0x3da].map(|port| (port, 0));
    let mut all: Vec<_> = indexed
        .chain(plain)
        .flat_map(|(port, index)| (0..=255u8).map(move |value| (port, index, value)))
        .collect();
    let mut state = seed;
    for at in (1..all.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
    }
    all
}

/// No panic, no byte from beyond video memory, and the surface equals a full redraw, whatever that
/// shows.
#[test]
fn every_register_takes_every_value_in_any_order() {
    let mut shown = 0;
    for seed in 0..3 {
        // The smallest memory, to detect accesses beyond it.
        let board = Board::new(256 << 10);
        let noise: Vec<u8> = (0..256u32 << 10)
            .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0])
            .collect();
        board.poke(BASE, &noise);
        let mut screen = board.screen();
        modes::set_mode(&board, modes::ALL[seed % modes::ALL.len()]);
        for (n, (port, index, value)) in writes(seed as u64).into_iter().enumerate() {
            match port {
                0x3c0 => {
                    board.input(0x3da);
                    board.out(port, index | 0x20);
                    board.out(port, value);
                }
                0x3d4 | 0x3c4 | 0x3ce => board.set(port, index, value),
                _ => board.out(port, value),
            }
            let address = 0xa0000 + u64::try_from(n).unwrap() * 37 % 0x20000;
            board.poke(address, &[value]);
            board.peek(address ^ 1);
            if n % 251 == 0 {
                screen.refresh().unwrap();
                if let Some(picture) = board.vga.screenshot().unwrap() {
                    assert_eq!(difference(screen.surface(), &picture), None);
                    shown += 1;
                }
                board.vga.text().unwrap();
                board.vga.restore(&board.vga.save()).unwrap();
            }
        }
    }
    assert!(shown > 10, "most of the time something is shown");
}

/// Geometries of the VBE registers, most of them larger than video memory.
#[test]
fn no_geometry_reaches_beyond_video_memory() {
    let sides = [0, 1, 7, 8, 640, 1023, 2048, 12000, 16000, 16001, 65535];
    let (mut shown, mut blank) = (0, 0);
    for depth in [0, 1, 4, 8, 15, 16, 24, 31, 32, 65535] {
        let board = Board::new(1 << 20);
        board.out(0x3c0, 0x20);
        board.vbe(3, depth);
        board.vbe(4, 0x41);
        let mut screen = board.screen();
        for (n, x) in sides.into_iter().enumerate() {
            for y in sides {
                board.vbe(1, x);
                board.vbe(2, y);
                board.vbe(6, sides[n / 2]);
                board.vbe(8, y / 3);
                board.vbe(9, x / 3);
                board.vbe(5, x);
                board.poke(0xafffe, &[1, 2, 3, 4]);
                screen.refresh().unwrap();
                match board.vga.screenshot().unwrap() {
                    Some(picture) => {
                        assert_eq!(difference(screen.surface(), &picture), None);
                        assert_eq!((picture.width(), picture.height()), (x.into(), y.into()));
                        shown += 1;
                    }
                    None => {
                        assert!(screen.surface().bytes().iter().all(|byte| *byte == 0));
                        blank += 1;
                    }
                }
            }
        }
    }
    assert!(shown > 100 && blank > 100, "{shown} shown, {blank} blank");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Random programs of the kind that `fuzz/` generates.
    #[test]
    fn no_program_does_harm(program in prop::collection::vec(any::<u8>(), 0..4000)) {
        abuse::run(&program);
    }
}
