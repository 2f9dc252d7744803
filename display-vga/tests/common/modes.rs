//! Registers of the standard modes, as a video BIOS sets them.

use super::Pc;

pub struct Mode {
    pub name: &'static str,
    pub miscellaneous: u8,
    pub sequencer: [u8; 5],
    pub crtc: [u8; 25],
    pub graphics: [u8; 9],
    pub attribute: [u8; 21],
}

const EGA: [u8; 16] = [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f];
const CGA_LIKE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const IDENTITY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const fn attribute(palette: [u8; 16], mode: u8, planes: u8, panning: u8) -> [u8; 21] {
    let mut all = [0; 21];
    let mut n = 0;
    while n < 16 {
        all[n] = palette[n];
        n += 1;
    }
    all[16] = mode;
    all[18] = planes;
    all[19] = panning;
    all
}

const fn crtc(
    horizontal: [u8; 6],
    vertical: [u8; 2],
    lines: u8,
    cursor: [u8; 2],
    retrace: [u8; 3],
    rest: [u8; 6],
) -> [u8; 25] {
    let mut all = [0; 25];
    let mut n = 0;
    while n < 6 {
        all[n] = horizontal[n];
        all[0x13 + n] = rest[n];
        n += 1;
    }
    (all[6], all[7], all[9]) = (vertical[0], vertical[1], lines);
    (all[0xa], all[0xb]) = (cursor[0], cursor[1]);
    (all[0x10], all[0x11], all[0x12]) = (retrace[0], retrace[1], retrace[2]);
    all
}

const WIDE: [u8; 6] = [0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81];
const WIDE_GRAPHICS: [u8; 6] = [0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80];
const NARROW: [u8; 6] = [0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80];
const NARROW_TEXT: [u8; 6] = [0x2d, 0x27, 0x28, 0x90, 0x2b, 0xa0];
const LINES_400: ([u8; 2], [u8; 3]) = ([0xbf, 0x1f], [0x9c, 0x8e, 0x8f]);
const LINES_350: ([u8; 2], [u8; 3]) = ([0xbf, 0x1f], [0x83, 0x85, 0x5d]);
const LINES_480: ([u8; 2], [u8; 3]) = ([0x0b, 0x3e], [0xea, 0x8c, 0xdf]);

pub const TEXT_40X25: Mode = Mode {
    name: "40x25",
    miscellaneous: 0x67,
    sequencer: [3, 8, 3, 0, 2],
    crtc: crtc(
        NARROW_TEXT,
        LINES_400.0,
        0x4f,
        [13, 14],
        LINES_400.1,
        [0x14, 0x1f, 0x96, 0xb9, 0xa3, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff],
    attribute: attribute(EGA, 0x0c, 0xf, 8),
};
pub const TEXT_80X25: Mode = Mode {
    name: "80x25",
    sequencer: [3, 0, 3, 0, 2],
    crtc: crtc(
        WIDE,
        LINES_400.0,
        0x4f,
        [13, 14],
        LINES_400.1,
        [0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff],
    ),
    ..TEXT_40X25
};
/// 8 dots and 8 lines a character.
pub const TEXT_80X50: Mode = Mode {
    name: "80x50",
    miscellaneous: 0x63,
    sequencer: [3, 1, 3, 0, 2],
    crtc: crtc(WIDE, LINES_400.0, 0x47, [6, 7], LINES_400.1, [0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff]),
    attribute: attribute(EGA, 0x08, 0xf, 0),
    ..TEXT_40X25
};
pub const MONOCHROME: Mode = Mode {
    name: "monochrome",
    miscellaneous: 0xa6,
    crtc: crtc(
        WIDE,
        LINES_400.0,
        0x4f,
        [13, 14],
        LINES_400.1,
        [0x28, 0x0d, 0x96, 0xb9, 0xa3, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0a, 0, 0xff],
    attribute: attribute([0, 8, 8, 8, 8, 8, 8, 8, 16, 24, 24, 24, 24, 24, 24, 24], 0x0e, 0xf, 8),
    ..TEXT_80X25
};
pub const CGA_4: Mode = Mode {
    name: "CGA, 320x200, 4 colours",
    miscellaneous: 0x63,
    sequencer: [3, 9, 3, 0, 2],
    crtc: crtc(
        NARROW,
        LINES_400.0,
        0xc1,
        [0, 0],
        LINES_400.1,
        [0x14, 0x00, 0x96, 0xb9, 0xa2, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff],
    attribute: attribute(
        [0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23],
        1,
        3,
        0,
    ),
};
pub const CGA_2: Mode = Mode {
    name: "CGA, 640x200, 2 colours",
    miscellaneous: 0x63,
    sequencer: [3, 1, 1, 0, 6],
    crtc: crtc(
        WIDE_GRAPHICS,
        LINES_400.0,
        0xc1,
        [0, 0],
        LINES_400.1,
        [0x28, 0x00, 0x96, 0xb9, 0xc2, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0, 0x0d, 0, 0xff],
    attribute: attribute([0, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23], 1, 1, 0),
};
pub const PLANAR_320X200: Mode = Mode {
    name: "320x200, 16 colours",
    miscellaneous: 0x63,
    sequencer: [3, 9, 0xf, 0, 6],
    crtc: crtc(
        NARROW,
        LINES_400.0,
        0xc0,
        [0, 0],
        LINES_400.1,
        [0x14, 0x00, 0x96, 0xb9, 0xe3, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0, 5, 0xf, 0xff],
    attribute: attribute(CGA_LIKE, 1, 0xf, 0),
};
pub const PLANAR_640X350: Mode = Mode {
    name: "640x350, 16 colours",
    miscellaneous: 0xa3,
    sequencer: [3, 1, 0xf, 0, 6],
    crtc: crtc(
        WIDE_GRAPHICS,
        LINES_350.0,
        0x40,
        [0, 0],
        LINES_350.1,
        [0x28, 0x0f, 0x63, 0xba, 0xe3, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0, 5, 0xf, 0xff],
    attribute: attribute(EGA, 1, 0xf, 0),
};
pub const PLANAR_640X480: Mode = Mode {
    name: "640x480, 16 colours",
    miscellaneous: 0xe3,
    crtc: crtc(
        WIDE_GRAPHICS,
        LINES_480.0,
        0x40,
        [0, 0],
        LINES_480.1,
        [0x28, 0x00, 0xe7, 0x04, 0xe3, 0xff],
    ),
    ..PLANAR_640X350
};
pub const MODE_13H: Mode = Mode {
    name: "320x200, 256 colours",
    miscellaneous: 0x63,
    sequencer: [3, 1, 0xf, 0, 0xe],
    crtc: crtc(
        WIDE_GRAPHICS,
        LINES_400.0,
        0x41,
        [0, 0],
        LINES_400.1,
        [0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff],
    ),
    graphics: [0, 0, 0, 0, 0, 0x40, 5, 0xf, 0xff],
    attribute: attribute(IDENTITY, 0x41, 0xf, 0),
};
/// 320x240, with the planes apart.
pub const MODE_X: Mode = Mode {
    name: "mode X",
    miscellaneous: 0xe3,
    sequencer: [3, 1, 0xf, 0, 6],
    crtc: crtc(
        WIDE_GRAPHICS,
        [0x0d, 0x3e],
        0x41,
        [0, 0],
        [0xea, 0xac, 0xdf],
        [0x28, 0x00, 0xe7, 0x06, 0xe3, 0xff],
    ),
    ..MODE_13H
};

pub const ALL: [&Mode; 11] = [
    &TEXT_40X25,
    &TEXT_80X25,
    &TEXT_80X50,
    &MONOCHROME,
    &CGA_4,
    &CGA_2,
    &PLANAR_320X200,
    &PLANAR_640X350,
    &PLANAR_640X480,
    &MODE_13H,
    &MODE_X,
];

/// Sets a mode as a BIOS does. The palette gets colours that are all different, of levels
/// that every way to widen six bits to eight widens alike.
pub fn set_mode(pc: &impl Pc, mode: &Mode) {
    pc.vbe(4, 0);
    pc.out(0x3c2, mode.miscellaneous);
    let (index, status) = if mode.miscellaneous & 1 != 0 { (0x3d4, 0x3da) } else { (0x3b4, 0x3ba) };
    pc.set(0x3c4, 0, 1);
    for (n, value) in (0..).zip(mode.sequencer).skip(1) {
        pc.set(0x3c4, n, value);
    }
    pc.set(0x3c4, 0, 3);
    pc.set(index, 0x11, 0); // no protection
    for (n, value) in (0..).zip(mode.crtc) {
        pc.set(index, n, value);
    }
    for (n, value) in (0..).zip(mode.graphics) {
        pc.set(0x3ce, n, value);
    }
    pc.input(status);
    for (n, value) in (0..).zip(mode.attribute) {
        pc.out(0x3c0, n);
        pc.out(0x3c0, value);
    }
    pc.out(0x3c6, 0xff);
    pc.out(0x3c8, 0);
    for n in 0..=255u8 {
        palette(n).into_iter().for_each(|level| pc.out(0x3c9, level));
    }
    pc.out(0x3c0, 0x20);
}

/// An entry of the palette that `set_mode` loads: levels of six bits.
pub fn palette(index: u8) -> [u8; 3] {
    // Even ones of the lowest, odd ones of the highest quarter.
    let level = |n: u8| if n < 8 { n * 2 } else { 33 + n * 2 };
    [level(index & 0xf), level(index >> 4), level(index.wrapping_mul(7) >> 2 & 0xf)]
}
