//! Balls that bounce over a chequered ground: what the demonstration draws.
//!
//! Here a picture is *defined*, pixel by pixel, from the number of its frame. The
//! guest program that draws it (`guest::scene`) works in another way, from the frame
//! before, so that the two check each other.

/// A ball, in a square box.
#[derive(Clone, Copy, Debug)]
pub struct Ball {
    /// Where the box starts in frame 0, in pixels from the left and from the top.
    pub start: (u64, u64),
    /// Pixels per frame, rightwards and downwards.
    pub step: (u64, u64),
    /// Length of the box's sides, in pixels.
    pub size: u64,
    /// How many bits darker than the light each of red, green and blue is.
    pub darken: [u32; 3],
}

/// A scene of one size.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Width in pixels.
    pub width: u64,
    /// Height in pixels.
    pub height: u64,
    /// The balls, the front one last.
    pub balls: [Ball; 3],
}

impl Scene {
    /// The scene for a picture of `width` x `height` pixels, of which the balls touch
    /// a third of the lines in a frame.
    ///
    /// # Panics
    ///
    /// If a side is below 64 pixels.
    pub fn new(width: u64, height: u64) -> Self {
        assert!(width >= 64 && height >= 64, "{width}x{height} pixels are too few for a scene");
        let size = (height / 10).min(width / 4) & !1;
        let ball = |x, y, step, darken| Ball {
            start: (width * x / 16, height * y / 16),
            step,
            size,
            darken,
        };
        let balls = [
            ball(1, 2, (4, 3), [0, 2, 3]),
            ball(6, 9, (5, 2), [3, 0, 2]),
            ball(11, 5, (3, 4), [0, 1, 4]),
        ];
        Self { width, height, balls }
    }

    /// Where the box of a ball starts in frame `frame`: it goes to and fro.
    pub fn position(&self, ball: &Ball, frame: u64) -> (u64, u64) {
        let along = |start: u64, step: u64, length: u64| {
            let range = length - ball.size;
            let way = (start + step * frame) % (2 * range);
            if way < range { way } else { 2 * range - way }
        };
        (
            along(ball.start.0, ball.step.0, self.width),
            along(ball.start.1, ball.step.1, self.height),
        )
    }

    /// Red, green and blue of the ground.
    pub fn ground(x: u64, y: u64) -> [u8; 3] {
        let byte = |value: u64| value.to_le_bytes()[0];
        let chequer = ((x >> 5) ^ (y >> 5)) & 1;
        [byte(0x10 + (x >> 6)), byte(0x18 + (y >> 4)), byte(0x50 + chequer * 0x14)]
    }

    /// Sixteen bits of fraction by which the shade falls off.
    pub fn falloff(ball: &Ball) -> u64 {
        (76 << 16) / (ball.size * ball.size)
    }

    /// Red, green and blue of a ball at a pixel of its box; `None` outside the disc.
    pub fn shade(ball: &Ball, x: u64, y: u64) -> Option<[u8; 3]> {
        // In half pixels from the centre, so that it lies between pixels.
        let size = ball.size.cast_signed();
        let (u, v) = (2 * x.cast_signed() + 1 - size, 2 * y.cast_signed() + 1 - size);
        if u * u + v * v > size * size {
            return None;
        }
        // The light falls from the upper left.
        let (u, v) = (u + size / 2, v + size / 2);
        let dark = ((u * u + v * v).cast_unsigned() * Self::falloff(ball)) >> 16;
        let light = (255 - dark.min(223)).to_le_bytes()[0];
        Some(ball.darken.map(|bits| light >> bits))
    }

    /// Red, green and blue of a pixel of frame `frame`.
    pub fn pixel(&self, frame: u64, x: u64, y: u64) -> [u8; 3] {
        let in_front = self.balls.iter().rev().find_map(|ball| {
            let (left, top) = self.position(ball, frame);
            let (x, y) = (x.checked_sub(left)?, y.checked_sub(top)?);
            if x < ball.size && y < ball.size { Self::shade(ball, x, y) } else { None }
        });
        in_front.unwrap_or_else(|| Self::ground(x, y))
    }

    /// The first pixel at which `picture` (red, green and blue of a pixel) is not frame
    /// `frame`, in words.
    pub fn first_difference(
        &self,
        frame: u64,
        picture: impl Fn(u64, u64) -> [u8; 3],
    ) -> Option<String> {
        (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y))).find_map(|(x, y)| {
            let (found, expected) = (picture(x, y), self.pixel(frame, x, y));
            (found != expected).then(|| {
                format!("pixel ({x}, {y}) of frame {frame} is {found:?}, should be {expected:?}")
            })
        })
    }
}
