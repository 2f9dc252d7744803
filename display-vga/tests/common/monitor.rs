//! The picture by definition: a beam that goes over the screen dot by dot, with the
//! counters of the CRT controller.

use display_vga::Surface;

/// The registers, from the bytes of a saved state of version 1.
pub struct Registers {
    pub miscellaneous: u8,
    pub sequencer: Vec<u8>,
    pub crtc: Vec<u8>,
    pub graphics: Vec<u8>,
    pub attribute_index: u8,
    pub attribute: Vec<u8>,
    pub dac_mask: u8,
    pub palette: Vec<[u8; 3]>,
    pub vbe: Vec<u16>,
}

impl Registers {
    pub fn parse(state: &[u8]) -> Self {
        assert_eq!(state[..4], [1, 0, 0, 0]);
        let mut rest = &state[12..];
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at(count);
            rest = after;
            taken.to_vec()
        };
        let miscellaneous = take(2)[0];
        let sequencer = take(6)[1..].to_vec();
        let crtc = take(26)[1..].to_vec();
        let graphics = take(10)[1..].to_vec();
        let attributes = take(22);
        let dac = take(8);
        let palette = take(768).chunks(3).map(|c| [c[0], c[1], c[2]]).collect();
        take(4);
        let vbe = take(22).chunks(2).skip(1).map(|v| u16::from_le_bytes([v[0], v[1]])).collect();
        assert!(rest.is_empty());
        Self {
            miscellaneous,
            sequencer,
            crtc,
            graphics,
            attribute_index: attributes[0],
            attribute: attributes[1..].to_vec(),
            dac_mask: dac[1],
            palette,
            vbe,
        }
    }

    fn dac(&self, index: u8) -> [u8; 3] {
        let wide = self.vbe[4] & 0x21 == 0x21;
        self.palette[usize::from(index & self.dac_mask)].map(|level| {
            let level = if wide { level } else { level & 0x3f };
            // Of six bits the first two are repeated.
            if wide { level } else { level * 4 + level / 16 }
        })
    }

    /// The colour of a 4-bit index, through the attribute controller.
    fn attribute(&self, number: u8) -> [u8; 3] {
        let a = &self.attribute;
        let mut index = a[usize::from(number & a[0x12] & 0xf)] & 0x3f;
        if a[0x10] & 0x80 != 0 {
            index = index & 0x0f | (a[0x14] & 3) << 4;
        }
        self.dac(index | (a[0x14] & 0xc) << 4)
    }

    fn ten_bits(&self, low: usize, eighth: (usize, u8), ninth: (usize, u8)) -> u32 {
        let bit = |(register, mask): (usize, u8)| u32::from(self.crtc[register] & mask != 0);
        u32::from(self.crtc[low]) + 256 * bit(eighth) + 512 * bit(ninth)
    }

    /// The picture of a mode of the VGA's own, with 256 KiB of `memory`.
    pub fn picture(&self, memory: &[u8], cursor_shown: bool, text_shown: bool) -> Option<Surface> {
        if self.crtc[0x17] & 0x80 == 0
            || self.sequencer[1] & 0x20 != 0
            || self.attribute_index & 0x20 == 0
        {
            return None;
        }
        let plane = |address: u32, plane: usize| memory[(address & 0xffff) as usize * 4 + plane];
        let c = |register: usize| u32::from(self.crtc[register]);
        let is_text = self.graphics[6] & 1 == 0;
        let dots = if is_text && self.sequencer[1] & 1 == 0 { 9 } else { 8 };
        let slow = if self.sequencer[1] & 8 != 0 { 2 } else { 1 };
        let width = (c(1) + 1) * dots * slow;
        let times = if c(0x17) & 4 != 0 { 2 } else { 1 };
        let height = (self.ten_bits(0x12, (7, 2), (7, 0x40)) + 1) * times;
        let compare = (self.ten_bits(0x18, (7, 0x10), (9, 0x40)) + 1) * times;
        // Panning is by whole bytes, and then by dots.
        let mut byte_pan = c(8) >> 5 & 3;
        let start = c(0xc) * 256 + c(0xd);
        let panning = self.attribute[0x13] & 0xf;
        let is_256 = !is_text && self.graphics[5] & 0x40 != 0;
        // In dots of the slow or the fast clock.
        let panning = match dots {
            9 if panning > 7 => 0,
            9 => u32::from(panning) + 1,
            _ if is_256 => u32::from(panning & 6),
            _ => u32::from(panning & 7),
        };
        let mut colours = Vec::new();

        let (mut row_start, mut row_scan) = (start, (c(8) & 0x1f).min(c(9) & 0x1f));
        let (mut repeat, mut pan) = (0, panning);
        for y in 0..height {
            if y == compare {
                (row_start, row_scan, repeat) = (0, 0, 0);
                if self.attribute[0x10] & 0x20 != 0 {
                    (byte_pan, pan) = (0, 0);
                }
            }
            for x in 0..width {
                let dot = x / slow + pan;
                let mut address = row_start + byte_pan + dot / dots;
                if is_text {
                    address &= 0xffff;
                    let (code, attribute) = (plane(address, 0), plane(address, 1));
                    let dot = dot % dots;
                    let map = self.sequencer[3];
                    let bits = if attribute & 8 != 0 {
                        (map >> 2 & 3, map >> 5 & 1)
                    } else {
                        (map & 3, map >> 4 & 1)
                    };
                    let font = u32::from(bits.0) * 0x4000 + u32::from(bits.1) * 0x2000;
                    let glyph = plane(font + u32::from(code) * 32 + row_scan, 2);
                    let mut lit = match dot {
                        8 => {
                            glyph & 1 != 0
                                && self.attribute[0x10] & 4 != 0
                                && (0xc0..0xe0).contains(&code)
                        }
                        _ => glyph & 0x80 >> dot != 0,
                    };
                    let monochrome = self.attribute[0x10] & 2 != 0;
                    if monochrome && attribute & 0x77 == 1 && row_scan == c(0x14) & 0x1f {
                        lit = true;
                    }
                    let blinks = self.attribute[0x10] & 8 != 0;
                    if blinks && attribute & 0x80 != 0 && !text_shown {
                        lit = false;
                    }
                    let lines = c(0xa) & 0x1f..=c(0xb) & 0x1f;
                    if c(0xa) & 0x20 == 0
                        && address == c(0xe) * 256 + c(0xf)
                        && lines.contains(&row_scan)
                        && cursor_shown
                    {
                        lit = true;
                    }
                    let background = attribute >> 4 & if blinks { 7 } else { 15 };
                    colours.push(self.attribute(if lit { attribute & 15 } else { background }));
                    continue;
                }
                // Bits of the address that the row scan takes over.
                let shift = if c(0x14) & 0x40 != 0 {
                    2
                } else if c(0x17) & 0x40 != 0 {
                    0
                } else {
                    1
                };
                // Only the line's first address is changed, and then incremented.
                let mut begin = (row_start + byte_pan) & 0xffff;
                for (select, bit) in [(1, 13 - shift), (2, 14 - shift)] {
                    if c(0x17) & select == 0 {
                        begin &= !(1 << bit);
                        begin |= u32::from(row_scan & select != 0) << bit;
                    }
                }
                address = begin + dot / dots;
                let dot = dot % 8;
                colours.push(if is_256 {
                    self.dac(plane(address, dot as usize / 2))
                } else if self.graphics[5] & 0x20 != 0 {
                    let (half, pixel) = (dot as usize / 4, dot % 4);
                    let two = |p: usize| plane(address, p) >> (6 - 2 * pixel) & 3;
                    self.attribute(two(half) | two(half + 2) << 2)
                } else {
                    let bit = |p: usize| (plane(address, p) & 0x80 >> dot != 0) as u8;
                    self.attribute(bit(0) | bit(1) << 1 | bit(2) << 2 | bit(3) << 3)
                });
            }
            repeat += 1;
            if repeat == if c(9) & 0x80 != 0 { 2 } else { 1 } {
                repeat = 0;
                row_scan += 1;
                if row_scan > c(9) & 0x1f {
                    row_scan = 0;
                    row_start += c(0x13) * 2;
                }
            }
        }
        Some(surface(width, height, &colours))
    }

    /// The picture of a VBE mode that fits `memory`.
    pub fn vbe_picture(&self, memory: &[u8]) -> Surface {
        let v = |register: usize| usize::from(self.vbe[register]);
        let (width, height, depth) = (v(1), v(2), v(3));
        let line = v(6).max(width);
        let mut colours = Vec::new();
        for y in v(9)..v(9) + height {
            for x in v(8)..v(8) + width {
                let pixel = y * line + x;
                let five = |value: u16| u8::try_from((value & 31) * 8 + (value & 31) / 4).unwrap();
                let six = |value: u16| u8::try_from((value & 63) * 4 + (value & 63) / 16).unwrap();
                colours.push(match depth {
                    4 => {
                        let at = (y * line.div_ceil(8) + x / 8) * 4;
                        let bit = |p: usize| (memory[at + p] >> (7 - x % 8) & 1) << p;
                        self.attribute(bit(0) | bit(1) | bit(2) | bit(3))
                    }
                    8 => self.dac(memory[pixel]),
                    15 | 16 => {
                        let value = u16::from_le_bytes([memory[pixel * 2], memory[pixel * 2 + 1]]);
                        match depth {
                            15 => [five(value >> 10), five(value >> 5), five(value)],
                            _ => [five(value >> 11), six(value >> 5), five(value)],
                        }
                    }
                    _ => {
                        let at = pixel * depth / 8;
                        [memory[at + 2], memory[at + 1], memory[at]]
                    }
                });
            }
        }
        surface(u32::try_from(width).unwrap(), u32::try_from(height).unwrap(), &colours)
    }
}

/// A surface can be made by the crate only: this one is a frame buffer of 32 bits.
fn surface(width: u32, height: u32, colours: &[[u8; 3]]) -> Surface {
    let bytes = u64::from(width) * u64::from(height) * 4;
    let vga = display_vga::Vga::new("monitor", bytes.next_multiple_of(256 << 10)).unwrap();
    let side = |side: u32| u16::try_from(side).unwrap();
    vga.set_mode(side(width), side(height), 32).unwrap();
    let pixels: Vec<u8> = colours.iter().flat_map(|[r, g, b]| [*b, *g, *r, 0]).collect();
    vga.vram().write(0, &pixels).unwrap();
    vga.screenshot().unwrap().unwrap()
}
