//! What the demonstration shows, defined without the guest that draws it.

use crate::machine::layout::{HEIGHT, WIDTH};

/// Pixels of a side of the square that moves.
pub(super) const SIDE: u64 = 48;
/// Pixels by which it moves in a frame, to the right and down; it begins again at the other edge.
pub(super) const MOVES: (u64, u64) = (3, 2);
/// What the square does to the colours under it.
pub(super) const INVERT: u32 = 0x00ff_ffff;

/// Where the upper left corner of the square is in a frame.
pub(super) fn corner(frame: u64) -> (u64, u64) {
    (frame * MOVES.0 % (WIDTH - SIDE), frame * MOVES.1 % (HEIGHT - SIDE))
}

/// The colour of the pixel at column `x` of line `y` in a frame, 0xrrggbb.
pub fn pixel(frame: u64, x: u64, y: u64) -> u32 {
    let (left, top) = corner(frame);
    let is_inside = (left..left + SIDE).contains(&x) && (top..top + SIDE).contains(&y);
    let ground = u32::try_from((x << 8 ^ y) & 0xffff).unwrap_or(0);
    ground ^ if is_inside { INVERT } else { 0 }
}

/// What it prints before it ends, if it shows so many frames.
pub fn text(frames: u64) -> String {
    let lines = (0..frames).map(|frame| format!("frame {frame}\n"));
    format!("rv64\n{}", lines.collect::<String>())
}
