//! The low window, 0xA0000 to 0xBFFFF: which part of it is decoded, and how the graphics
//! controller transforms a byte that is written to the planes.
//!
//! Video memory interleaves the planes: byte 4n + p is byte n of plane p. So in chain-4, byte n
//! of the window is byte n of video memory, and the window can be an alias: [`Direct`]. In
//! odd/even mode, two bytes share an address of two planes, so addresses are halved. A real VGA
//! does not halve them, and its CRTC doubles its own addresses; both show the same picture as
//! long as a mode is written and displayed by the same rule, as all modes of the manuals are.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use crate::registers::register_file::{Registers, graphics, sequencer};

/// Bytes of the window.
pub(crate) const WINDOW_BYTES: u64 = 0x20000;

/// Addresses of a plane in the VGA's own modes.
const PLANE: u64 = 0x10000;
/// Bytes of the window through which a VBE mode shows a bank.
const BANK_BYTES: u64 = 0x10000;

/// A part of the window that is plain video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direct {
    /// Bytes from the start of the window.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Its offset in video memory, in bytes.
    pub(crate) vram: u64,
}

/// The target of an access to the planes.
struct PlaneAccess {
    /// The offset of plane 0's byte in video memory; those of the other planes follow.
    byte: u64,
    /// The planes that a write at this address reaches.
    writes: u8,
    /// The plane that a read returns.
    reads: u8,
}

/// A byte for each plane: all ones for the planes in `mask`.
fn spread(mask: u8) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|plane| if mask >> plane & 1 != 0 { 0xff } else { 0 }))
}

/// The same byte for each plane.
fn repeat(byte: u8) -> u32 {
    u32::from_le_bytes([byte; 4])
}

impl Registers {
    /// Whether the window shows a bank of a VBE mode's packed pixels, and not the VGA's planes.
    fn shows_bank(&self) -> bool {
        self.vbe.is_enabled() && self.vbe.is_packed()
    }

    fn is_chain4(&self) -> bool {
        self.sequencer[sequencer::MEMORY_MODE] & 8 != 0
    }

    /// The part of the window that is decoded.
    fn aperture(&self) -> Range<u64> {
        const RAM_ENABLED: u8 = 2;
        if self.shows_bank() {
            return 0..BANK_BYTES;
        }
        if self.miscellaneous & RAM_ENABLED == 0 {
            return 0..0;
        }
        match self.graphics[graphics::MISCELLANEOUS] >> 2 & 3 {
            0 => 0..WINDOW_BYTES,
            1 => 0..0x10000,
            2 => 0x10000..0x18000,
            _ => 0x18000..WINDOW_BYTES,
        }
    }

    /// The part of the window that is plain memory in this mode, of `vram` bytes.
    pub(crate) fn direct(&self, vram: u64) -> Option<Direct> {
        if self.shows_bank() {
            let offset = self.vbe.bank_offset();
            return (offset + BANK_BYTES <= vram).then_some(Direct {
                offset: 0,
                len: BANK_BYTES,
                vram: offset,
            });
        }
        let graphics = |register: usize| self.graphics[register];
        let plain = self.is_chain4()
            && !self.vbe.is_enabled()
            && self.sequencer[sequencer::MAP_MASK] == 0xf
            && graphics(graphics::ENABLE_SET_RESET) == 0
            && graphics(graphics::ROTATE) == 0
            && graphics(graphics::BIT_MASK) == 0xff
            // Write mode 0, read mode 0.
            && graphics(graphics::MODE) & 0x0b == 0;
        let aperture = self.aperture();
        (plain && !aperture.is_empty()).then_some(Direct {
            offset: aperture.start,
            len: aperture.end - aperture.start,
            vram: 0,
        })
    }

    fn target(&self, address: u64, vram: u64) -> Option<PlaneAccess> {
        let aperture = self.aperture();
        if !aperture.contains(&address) {
            return None;
        }
        let offset = address - aperture.start;
        let [low, ..] = offset.to_le_bytes();
        let map_mask = self.sequencer[sequencer::MAP_MASK];
        let read_map = self.graphics[graphics::READ_MAP];
        let (mut unit, writes, reads) = if self.is_chain4() {
            (offset / 4, map_mask & 1 << (low & 3), low & 3)
        } else {
            let odd_even = self.sequencer[sequencer::MEMORY_MODE] & 4 == 0;
            let writes = match (odd_even, low & 1) {
                (false, _) => map_mask,
                (true, 0) => map_mask & 0b0101,
                (true, _) => map_mask & 0b1010,
            };
            let reads = match self.graphics[graphics::MODE] & 0x10 != 0 {
                true => read_map & 2 | low & 1,
                false => read_map,
            };
            let chained = self.graphics[graphics::MISCELLANEOUS] & 2 != 0;
            (if chained { offset / 2 } else { offset }, writes, reads)
        };
        unit += self.vbe.bank_offset();
        if !self.vbe.is_enabled() {
            unit %= PLANE;
        }
        (unit * 4 + 4 <= vram).then_some(PlaneAccess { byte: unit * 4, writes, reads })
    }

    /// Reads a byte of the window.
    pub(crate) fn read_window(
        &mut self,
        vram: &RamBlock,
        address: u64,
    ) -> Result<u8, RamBlockError> {
        if self.shows_bank() {
            let mut byte = [0xff];
            if address < BANK_BYTES && self.vbe.bank_offset() + address < vram.len() {
                vram.read(self.vbe.bank_offset() + address, &mut byte)?;
            }
            return Ok(byte[0]);
        }
        let Some(target) = self.target(address, vram.len()) else { return Ok(0xff) };
        vram.read(target.byte, &mut self.latches)?;
        if self.graphics[graphics::MODE] & 8 == 0 {
            return Ok(self.latches[usize::from(target.reads)]);
        }
        // Read mode 1: a set bit for each pixel that matches the colour in the planes that count.
        let wanted = spread(self.graphics[graphics::COLOUR_COMPARE]);
        let differs = (u32::from_le_bytes(self.latches) ^ wanted)
            & spread(self.graphics[graphics::COLOUR_DONT_CARE]);
        let [a, b, c, d] = differs.to_le_bytes();
        Ok(!(a | b | c | d))
    }

    /// Writes a byte of the window.
    pub(crate) fn write_window(
        &mut self,
        vram: &RamBlock,
        address: u64,
        value: u8,
    ) -> Result<(), RamBlockError> {
        if self.shows_bank() {
            if address < BANK_BYTES && self.vbe.bank_offset() + address < vram.len() {
                vram.write(self.vbe.bank_offset() + address, &[value])?;
            }
            return Ok(());
        }
        let Some(target) = self.target(address, vram.len()) else { return Ok(()) };
        if target.writes == 0 {
            return Ok(());
        }
        let new = self.through_alu(value).to_le_bytes();
        if target.writes == 0xf {
            return vram.write(target.byte, &new);
        }
        for plane in (0..4u8).filter(|plane| target.writes >> plane & 1 != 0) {
            vram.write(target.byte + u64::from(plane), &new[usize::from(plane)..][..1])?;
        }
        Ok(())
    }

    /// The four planes' bytes for a write of `value`: write modes 0 to 3.
    fn through_alu(&self, value: u8) -> u32 {
        let graphics = |register: usize| self.graphics[register];
        let latches = u32::from_le_bytes(self.latches);
        let rotate = graphics(graphics::ROTATE);
        let rotated = value.rotate_right(u32::from(rotate & 7));
        let set_reset = spread(graphics(graphics::SET_RESET));
        let bit_mask = graphics(graphics::BIT_MASK);
        let (data, bit_mask) = match graphics(graphics::MODE) & 3 {
            0 => {
                let enabled = spread(graphics(graphics::ENABLE_SET_RESET));
                (repeat(rotated) & !enabled | set_reset & enabled, bit_mask)
            }
            1 => return latches,
            2 => (spread(value & 0xf), bit_mask),
            _ => (set_reset, bit_mask & rotated),
        };
        let result = match rotate >> 3 & 3 {
            0 => data,
            1 => data & latches,
            2 => data | latches,
            _ => data ^ latches,
        };
        let mask = repeat(bit_mask);
        result & mask | latches & !mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The graphics controller by definition: plane by plane, bit by bit.
    fn bit_by_bit(r: &Registers, value: u8) -> [u8; 4] {
        let g = &r.graphics;
        std::array::from_fn(|plane| {
            let mut byte = 0;
            for bit in 0..8 {
                let latch = r.latches[plane] >> bit & 1;
                let rotated = value >> ((bit + (g[3] & 7)) % 8) & 1;
                let set = g[0] >> plane & 1;
                let alu = |data: u8| match g[3] >> 3 & 3 {
                    0 => data,
                    1 => data & latch,
                    2 => data | latch,
                    _ => data ^ latch,
                };
                let masked = |data: u8, mask: u8| if mask >> bit & 1 != 0 { data } else { latch };
                byte |= match g[5] & 3 {
                    0 if g[1] >> plane & 1 != 0 => masked(alu(set), g[8]),
                    0 => masked(alu(rotated), g[8]),
                    1 => latch,
                    2 => masked(alu(value >> plane & 1), g[8]),
                    _ => masked(alu(set), g[8] & (rotated << bit)),
                } << bit;
            }
            byte
        })
    }

    prop_compose! {
        fn registers()(
            graphics in any::<[u8; graphics::COUNT]>(),
            map_mask in 0..16u8,
            memory_mode in 0..16u8,
            latches in any::<[u8; 4]>(),
        ) -> Registers {
            let mut r = Registers { miscellaneous: 3, latches, ..Registers::default() };
            r.graphics = graphics;
            r.graphics[graphics::READ_MAP] &= 3;
            r.sequencer[sequencer::MAP_MASK] = map_mask;
            r.sequencer[sequencer::MEMORY_MODE] = memory_mode;
            r
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn writes_are_those_of_the_manual(
            mut r in registers(),
            value in any::<u8>(),
            address in 0..WINDOW_BYTES,
            before in any::<[u8; 4]>(),
        ) {
            let vram = RamBlock::anonymous("vram", 1 << 20).unwrap();
            let g6 = r.graphics[6];
            let (start, len) = [(0, 0x20000), (0, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000)]
                [usize::from(g6 >> 2 & 3)];
            let inside = (start..start + len).contains(&address);
            let at = address.wrapping_sub(start);
            let (unit, by_address) = match (r.sequencer[4] >> 3 & 1, r.sequencer[4] >> 2 & 1) {
                (1, _) => (at / 4, 1 << (at % 4)),
                (_, 0) => (if g6 & 2 != 0 { at / 2 } else { at }, if at % 2 == 0 { 5 } else { 10 }),
                _ => (if g6 & 2 != 0 { at / 2 } else { at }, 15),
            };
            let byte = unit % 0x10000 * 4;
            vram.write(byte, &before).unwrap();
            r.write_window(&vram, address, value).unwrap();
            let mut after = [0; 4];
            vram.read(byte, &mut after).unwrap();
            let written = bit_by_bit(&r, value);
            for plane in 0..4 {
                let reached = inside && (by_address & r.sequencer[2]) >> plane & 1 != 0;
                let expected = if reached { written[plane] } else { before[plane] };
                prop_assert_eq!(after[plane], expected, "plane {}", plane);
            }
        }

        #[test]
        fn reads_are_those_of_the_manual(
            mut r in registers(),
            unit in 0..0x4000u64,
            low in 0..4u64,
            planes in any::<[u8; 4]>(),
        ) {
            let vram = RamBlock::anonymous("vram", 1 << 20).unwrap();
            r.graphics[6] = 5 | r.graphics[6] & 2;
            let chain4 = r.sequencer[4] & 8 != 0;
            let chained = r.graphics[6] & 2 != 0 && !chain4;
            let scale = if chain4 { 4 } else if chained { 2 } else { 1 };
            let address = unit * scale + low % scale;
            vram.write(unit * 4, &planes).unwrap();
            let read = r.read_window(&vram, address).unwrap();
            prop_assert_eq!(r.latches, planes);
            let g = &r.graphics;
            let plane = if chain4 {
                address % 4
            } else if g[5] & 0x10 != 0 {
                u64::from(g[4] & 2) + address % 2
            } else {
                g[4].into()
            };
            let compared = (0..8).fold(0, |byte, bit| {
                let equal = (0..4)
                    .all(|p| g[7] >> p & 1 == 0 || planes[p] >> bit & 1 == g[2] >> p & 1);
                byte | u8::from(equal) << bit
            });
            let expected =
                if g[5] & 8 != 0 { compared } else { planes[usize::try_from(plane).unwrap()] };
            prop_assert_eq!(read, expected);
        }

        /// The part that can be mapped as plain memory behaves as accesses by the device do.
        #[test]
        fn the_direct_part_is_what_accesses_do(
            mut r in registers(),
            plain in any::<bool>(),
            address in 0..WINDOW_BYTES,
            value in any::<u8>(),
        ) {
            let vram = RamBlock::anonymous("vram", 1 << 20).unwrap();
            if plain {
                r.sequencer[2] = 15;
                r.sequencer[4] |= 8;
                for (register, value) in [(1, 0), (3, 0), (5, 0x40), (8, 0xff)] {
                    r.graphics[register] = value;
                }
            }
            if let Some(direct) = r.direct(1 << 20) {
                let address = direct.offset + address % direct.len;
                r.write_window(&vram, address, value).unwrap();
                let mut byte = [0];
                vram.read(direct.vram + address - direct.offset, &mut byte).unwrap();
                prop_assert_eq!(byte, [value]);
                prop_assert_eq!(r.read_window(&vram, address).unwrap(), value);
            } else {
                prop_assert!(!plain);
            }
        }
    }
}
