//! What the guest shows, defined without the guest that draws it.
//!
//! A ball rolls over a chequered ground. A square lens, which arrow keys move, inverts the colours
//! under it. Places are in pixels from the upper left corner, of upper left corners.

/// Pixels of a line.
pub(crate) const WIDTH: i32 = 640;
/// Lines.
pub(crate) const HEIGHT: i32 = 480;
/// Pixels of half the ball's width.
pub(crate) const RADIUS: i32 = 24;
/// How far the light is from the ball's centre, to the left and up.
pub(crate) const LIGHT: i32 = 8;
/// The square of the distance from the light at which there would be none left.
pub(crate) const DARK: i32 = 1400;
/// What the ball's colour is without light: 0xrrggbb.
pub(crate) const BALL: u32 = 0x48_1010;
/// The ground's darkest colour.
pub(crate) const GROUND: u32 = 0x18_2050;
/// What light squares have in addition.
pub(crate) const LIGHT_SQUARE: u32 = 0x18_1818;
/// Pixels of a side of the lens.
pub(crate) const SIDE: i32 = 48;
/// Pixels of its border.
pub(crate) const BORDER: i32 = 2;
/// Pixels by which an arrow key moves it in a frame.
pub(crate) const STEP: i32 = 4;
/// The border's colour, and the bits that the lens inverts.
pub(crate) const WHITE: u32 = 0xff_ffff;

/// The arrow keys, by their codes of the PC's scan code set 1 (those of the numeric pad, which have
/// no prefix). A key that is released sends its code with bit 7 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Arrow up.
    Up = 0x48,
    /// Arrow left.
    Left = 0x4b,
    /// Arrow right.
    Right = 0x4d,
    /// Arrow down.
    Down = 0x50,
}

impl Key {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Up, Self::Left, Self::Right, Self::Down];

    /// The bit that it has in a set of keys.
    pub(crate) fn bit(self) -> i32 {
        match self {
            Self::Up => 0,
            Self::Left => 1,
            Self::Right => 2,
            Self::Down => 3,
        }
    }
}

/// The places of what moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The ball's column and line.
    pub ball: [i32; 2],
    /// By how many columns and lines the ball moves in a frame.
    pub velocity: [i32; 2],
    /// The lens' column and line.
    pub lens: [i32; 2],
}

impl Default for Scene {
    /// The first frame's.
    fn default() -> Self {
        Self { ball: [96, 64], velocity: [3, 2], lens: [296, 216] }
    }
}

impl Scene {
    /// The next frame, in which some keys are down or were pressed.
    pub fn step(&mut self, keys: &[Key]) {
        for (axis, size) in [WIDTH, HEIGHT].into_iter().enumerate() {
            let (place, velocity) = (&mut self.ball[axis], &mut self.velocity[axis]);
            if !(0..=size - 2 * RADIUS).contains(&(*place + *velocity)) {
                *velocity = -*velocity;
            }
            *place += *velocity;
        }
        let steps = |to: Key, from: Key| {
            STEP * (i32::from(keys.contains(&to)) - i32::from(keys.contains(&from)))
        };
        let [x, y] = self.lens;
        let x = (x + steps(Key::Right, Key::Left)).clamp(0, WIDTH - SIDE);
        let y = (y + steps(Key::Down, Key::Up)).clamp(0, HEIGHT - SIDE);
        self.lens = [x, y];
    }

    /// The colour at column `x` of line `y`: 0xrrggbb.
    pub fn pixel(&self, x: i32, y: i32) -> u32 {
        let [left, top] = [x - self.lens[0], y - self.lens[1]];
        let colour = self.without_lens(x, y);
        let is_in = |margin: i32| {
            let inside = margin..SIDE - margin;
            inside.contains(&left) && inside.contains(&top)
        };
        match (is_in(BORDER), is_in(0)) {
            (true, _) => colour ^ WHITE,
            (false, true) => WHITE,
            (false, false) => colour,
        }
    }

    fn without_lens(&self, x: i32, y: i32) -> u32 {
        let bits = |value: i32| value.cast_unsigned();
        let [dx, dy] = [x - self.ball[0] - RADIUS, y - self.ball[1] - RADIUS];
        if dx * dx + dy * dy < RADIUS * RADIUS {
            let from_light = (dx + LIGHT) * (dx + LIGHT) + (dy + LIGHT) * (dy + LIGHT);
            let light = bits(DARK - from_light) >> 3;
            return BALL + (light << 16) + ((light / 2) << 8);
        }
        let square = if (x ^ y) & 32 != 0 { LIGHT_SQUARE } else { 0 };
        GROUND + square + (bits(x / 8) << 16) + (bits(y / 8) << 8) + bits((x + y) / 16)
    }
}
