//! Whatever a guest, or a stream with a device's state, may do to a VGA: a program of bytes,
//! as a fuzzer makes them.

use std::sync::atomic::Ordering;

use display_vga::Vga;

use super::{BASE, Board, MMIO, Pc, difference, modes};

/// Refreshes of a program, each compared with a full redraw.
const REFRESHES: u32 = 24;

/// Reads a program, as zeros from its end on.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number as drivers use them, or any.
    fn value(&mut self) -> u16 {
        let value = self.word();
        match value >> 13 {
            0 => value & 0xff,
            1 => [0, 1, 0x41, 0x61, 0xe1, 0xffff, 0x8000, 0xb0c5][usize::from(value % 8)],
            2 => [4, 8, 15, 16, 24, 32, 1, 640][usize::from(value % 8)],
            _ => value,
        }
    }

    fn bytes(&mut self, len: u8) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// Runs a program. No panic, no byte from beyond video memory, and whenever somebody looks
/// the surface is what a full redraw gives, or blank.
pub fn run(program: &[u8]) {
    let mut program = Program(program);
    let first = program.byte();
    // The least, one that is no power of two, and more.
    let vram = [256 << 10, 320 << 10, 1 << 20, 2 << 20][usize::from(first & 3)];
    let board = Board::new(vram);
    let screen = board.screen();
    let mut screen = if first & 4 != 0 { screen.zero_copy() } else { screen };
    let mut refreshes = 0;
    while !program.0.is_empty() && refreshes < REFRESHES {
        let operation = program.byte();
        let size = 1usize << (operation >> 6);
        match operation % 16 {
            0 => board.out(0x3b0 + u16::from(program.byte() % 0x30), program.byte()),
            1 | 2 => {
                let ports = [0x3d4, 0x3c4, 0x3ce, 0x3b4, 0x3c0, 0x3c9, 0x3c2, 0x3c6];
                let port = ports[usize::from(program.byte() % 8)];
                board.out16(port, u16::from_le_bytes([program.byte() & 0x1f, program.byte()]));
            }
            3 => {
                let mut out = [0; 8];
                let port = 0x3b0 + u64::from(program.byte() % 0x30);
                let _ = board.ports.read(port, &mut out[..size]);
            }
            4 | 5 => board.vbe((program.byte() % 12).into(), program.value()),
            6 => {
                let at = MMIO + u64::from(program.word() % 0xff8);
                let bytes = program.bytes(8);
                let _ = board.memory.write(at, &bytes[..size]);
                let _ = board.memory.read(at, &mut [0; 8][..size]);
            }
            7 | 8 => {
                let at = u64::from(program.word()) * 2 + u64::from(size == 1);
                let bytes = program.bytes(16);
                let _ = board.memory.write(Vga::WINDOW + at, &bytes);
            }
            9 => {
                let at = u64::from(program.word()) * 2;
                let _ = board.memory.read(Vga::WINDOW + at, &mut [0; 8][..size]);
            }
            10 => {
                let at = (u64::from(program.word()) << 5) % (vram - 256);
                let len = program.byte();
                board.poke(BASE + at, &program.bytes(len));
            }
            11 => match program.byte() {
                n @ 0..64 => modes::set_mode(&board, modes::ALL[usize::from(n) % 11]),
                n @ 64..128 => {
                    let (width, height) = (program.word() % 900, program.word() % 700);
                    let depth = [4, 8, 15, 16, 24, 32, 7, 0][usize::from(n % 8)];
                    let _ = board.vga.set_mode(width, height, depth);
                }
                128..160 => board.vga.set_text_mode().unwrap(),
                160..192 => board.vga.reset(),
                _ => {
                    let _ = board.vga.set_preferred_size(program.word(), program.word());
                }
            },
            12 => {
                let mut state = board.vga.save();
                match program.byte() {
                    // Anything at all.
                    n @ 0..32 => state = program.bytes(n),
                    // A state in which something is wrong, or not.
                    n => {
                        for _ in 0..n % 8 {
                            let at = usize::from(program.word()) % state.len();
                            state[at] = program.byte();
                        }
                    }
                }
                let before = board.vga.save();
                let restored = board.vga.restore(&state);
                let expected = if restored.is_ok() { state } else { before };
                assert_eq!(board.vga.save(), expected, "{restored:?}");
            }
            13 => {
                let time = u64::from(program.word()) << (operation >> 4);
                board.clock.fetch_add(time * 10_000, Ordering::Relaxed);
            }
            14 => drop(board.vga.text().unwrap()),
            _ => {
                refreshes += 1;
                look(&board, &mut screen);
            }
        }
    }
    look(&board, &mut screen);
}

fn look(board: &Board, screen: &mut display_vga::Screen) {
    screen.refresh().unwrap();
    match board.vga.screenshot().unwrap() {
        Some(picture) => assert_eq!(difference(screen.surface(), &picture), None),
        None => assert!(screen.surface().bytes().iter().all(|byte| *byte == 0)),
    }
}
