//! Programs that set each mode as a driver does, and draw.

use super::Pc;
use super::modes::{self, Mode};

/// A mode, and the kind of program that draws in it.
pub enum Program {
    /// Glyphs are loaded, then text is written.
    Text(&'static Mode),
    /// Lines of bytes through the low window.
    Cga(&'static Mode),
    /// Planes, in every way of writing.
    Planes(&'static Mode),
    /// A byte for each pixel in the low window.
    Chain4,
    /// A byte for each pixel, a plane at a time.
    ModeX,
    /// Width, height and depth, through the linear frame buffer.
    Linear(u16, u16, u16),
}

/// 40 columns of 8 dots: QEMU draws those of 9 too narrow.
pub const NARROW_TEXT: Mode = Mode {
    name: "40x25, 8 dots",
    sequencer: [3, 9, 3, 0, 2],
    attribute: modes::TEXT_80X50.attribute,
    ..modes::TEXT_40X25
};

pub const ALL: [(&str, Program); 17] = [
    ("text 80x25", Program::Text(&modes::TEXT_80X25)),
    ("text 80x50", Program::Text(&modes::TEXT_80X50)),
    ("text 40x25", Program::Text(&NARROW_TEXT)),
    ("CGA, 4 colours", Program::Cga(&modes::CGA_4)),
    ("CGA, 2 colours", Program::Cga(&modes::CGA_2)),
    ("320x200, 16 colours", Program::Planes(&modes::PLANAR_320X200)),
    ("640x350, 16 colours", Program::Planes(&modes::PLANAR_640X350)),
    ("640x480, 16 colours", Program::Planes(&modes::PLANAR_640X480)),
    ("320x200, 256 colours", Program::Chain4),
    ("320x240, 256 colours", Program::ModeX),
    ("VBE 640x400, 4 bits", Program::Linear(640, 400, 4)),
    ("VBE 640x480, 8 bits", Program::Linear(640, 480, 8)),
    ("VBE 800x600, 15 bits", Program::Linear(800, 600, 15)),
    ("VBE 800x600, 16 bits", Program::Linear(800, 600, 16)),
    ("VBE 640x480, 24 bits", Program::Linear(640, 480, 24)),
    ("VBE 1024x768, 32 bits", Program::Linear(1024, 768, 32)),
    ("VBE 328x217, 32 bits", Program::Linear(328, 217, 32)),
];

impl Program {
    /// What is done to `pc`, whose linear frame buffer is at `base`.
    pub fn run(&self, pc: &impl Pc, base: u64) {
        match *self {
            Self::Text(mode) => text(pc, mode),
            Self::Cga(mode) => {
                modes::set_mode(pc, mode);
                pc.poke(0xb8000, &noise(16384, 11));
            }
            Self::Planes(mode) => {
                pc.poke(base, &vec![0; 256 << 10]); // firmware was here
                planes(pc, mode);
            }
            Self::Chain4 => {
                modes::set_mode(pc, &modes::MODE_13H);
                pc.poke(0xa0000, &noise(64000, 12));
            }
            Self::ModeX => {
                modes::set_mode(pc, &modes::MODE_X);
                for plane in 0..4u8 {
                    pc.set(0x3c4, 2, 1 << plane);
                    pc.poke(0xa0000, &noise(320 * 240 / 4, plane.into()));
                }
            }
            Self::Linear(width, height, depth) => {
                modes::set_mode(pc, &modes::PLANAR_640X480); // for the palette
                for (register, value) in [(1, width), (2, height), (3, depth), (4, 0x41)] {
                    pc.vbe(register, value);
                }
                let bytes = u32::from(depth).div_ceil(8).max(1);
                pc.poke(base, &noise(u32::from(width) * u32::from(height) * bytes, 13));
            }
        }
    }

    /// The bits of red, green and blue in which QEMU is right: it leaves the low ones of 5 and 6
    /// zero, so that its white is not white.
    pub fn right_on_qemu(&self) -> [u8; 3] {
        match self {
            Self::Linear(.., 15) => [0xf8; 3],
            Self::Linear(.., 16) => [0xf8, 0xfc, 0xf8],
            _ => [0xff; 3],
        }
    }
}

pub fn noise(len: u32, seed: u32) -> Vec<u8> {
    (0..len).map(|n| ((n ^ seed).wrapping_mul(0x9e37_79b9) >> 15).to_le_bytes()[0]).collect()
}

/// Text without blinking, whose phase a test cannot choose in another emulator.
pub fn text(pc: &impl Pc, mode: &Mode) {
    modes::set_mode(pc, mode);
    pc.set(0x3c4, 2, 4);
    pc.set(0x3c4, 4, 6);
    pc.set(0x3ce, 5, 0);
    pc.set(0x3ce, 6, 4);
    pc.poke(0xa0000, &noise(8192, 7));
    pc.poke(0xa6000, &noise(8192, 8));
    modes::set_mode(pc, mode);
    pc.set(0x3d4, 0xa, 0x20); // no cursor
    pc.input(0x3da);
    pc.out(0x3c0, 0x30);
    pc.out(0x3c0, mode.attribute[16] & !8);
    // QEMU repeats the eighth dot of 0xB0 to 0xBF too, which the VGA does not.
    let mut text = noise(16384, 9);
    text.iter_mut().step_by(2).filter(|code| **code >> 4 == 0xb).for_each(|code| *code = 1);
    pc.poke(0xb8000, &text);
}

/// A part of the screen by each way in which a program writes planes.
fn planes(pc: &impl Pc, mode: &Mode) {
    const PART: u32 = 3000;
    modes::set_mode(pc, mode);
    let part = |n: u64| 0xa0000 + n * u64::from(PART);
    // Plane by plane, then all of them at once.
    for plane in 0..4u8 {
        pc.set(0x3c4, 2, 1 << plane);
        pc.poke(part(0), &noise(PART, plane.into()));
    }
    pc.set(0x3c4, 2, 0xf);
    pc.poke(part(1), &noise(PART, 20));
    // Set/reset of some planes, rotated and combined with the latches.
    pc.set(0x3ce, 0, 0b0101);
    pc.set(0x3ce, 1, 0b0110);
    for (function, at) in [0x00u8, 0x0b, 0x12, 0x1d].into_iter().zip(0..) {
        pc.set(0x3ce, 3, function);
        pc.set(0x3ce, 8, 0x7e);
        for (n, byte) in (0..400).zip(noise(400, 21)) {
            pc.peek(part(0) + n * 3);
            pc.poke(part(2) + at * 400 + n, &[byte]);
        }
    }
    pc.set(0x3ce, 1, 0);
    pc.set(0x3ce, 3, 0);
    pc.set(0x3ce, 8, 0xff);
    // Write mode 1 copies the latches, 2 writes a colour, 3 takes the byte as a mask.
    pc.set(0x3ce, 5, 1);
    for n in 0..400 {
        pc.peek(part(0) + n * 5);
        pc.poke(part(3) + n, &[0x5a]);
    }
    pc.set(0x3ce, 5, 2);
    for (n, byte) in (0..400).zip(noise(400, 22)) {
        pc.set(0x3ce, 8, byte);
        pc.peek(part(3) + 400 + n);
        pc.poke(part(3) + 400 + n, &[byte & 0xf]);
    }
    pc.set(0x3ce, 8, 0xff);
    pc.set(0x3ce, 5, 3);
    pc.poke(part(3) + 800, &noise(400, 23));
    pc.set(0x3ce, 5, 0);
}
