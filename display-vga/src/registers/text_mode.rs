//! The text mode that a PC's firmware sets: 80x25, 720x400, mode 3.

use crate::registers::register_file::{Registers, crtc, graphics, sequencer};

/// The cell that firmware clears the screen with: a blank, grey on black.
pub(crate) const BLANK: [u8; 2] = [b' ', 0x07];
/// Characters on the screen.
pub(crate) const CELLS: u16 = 80 * 25;

/// The registers in mode 3, from the table of parameters in IBM's manual.
pub(crate) fn registers() -> Registers {
    const SEQUENCER: [u8; sequencer::COUNT] = [0x03, 0x00, 0x03, 0x00, 0x02];
    const CRTC: [u8; crtc::COUNT] = [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00,
        0x00, 0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ];
    const GRAPHICS: [u8; graphics::COUNT] = [0, 0, 0, 0, 0, 0x10, 0x0e, 0x0f, 0xff];
    let mut registers = Registers {
        miscellaneous: 0x67,
        sequencer: SEQUENCER,
        crtc: CRTC,
        graphics: GRAPHICS,
        ..Registers::default()
    };
    registers.attribute = [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e,
        0x3f, 0x0c, 0x00, 0x0f, 0x08, 0x00,
    ];
    // Two bits for each component: two thirds and one third of the full level.
    for (entry, colour) in (0u8..64).zip(&mut registers.dac.palette) {
        let level = |two_thirds: u8, third: u8| {
            (entry >> two_thirds & 1) * 0x2a + (entry >> third & 1) * 0x15
        };
        *colour = [level(2, 5), level(1, 4), level(0, 3)];
    }
    registers
}
