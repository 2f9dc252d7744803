//! The I/O ports 0x3B0 to 0x3DF, byte by byte.

use crate::registers::register_file::{Registers, attribute, crtc, graphics, sequencer};
use crate::registers::retrace::Timing;

/// The first of the ports.
pub(crate) const FIRST: u16 = 0x3b0;
/// The number of ports.
pub(crate) const COUNT: u16 = 0x30;

/// Bit of the miscellaneous output register: the CRTC is at 0x3Dx, not at 0x3Bx.
const COLOUR_PORTS: u8 = 1;
/// Bit of the CRTC's vertical retrace end register: registers 0 to 7 are write-protected.
const PROTECTED: u8 = 0x80;
/// The bit of the overflow register that is not protected: bit 8 of the line compare.
const LINE_COMPARE_8: u8 = 0x10;

/// Read from a port that is not decoded.
const FLOATING: u8 = 0xff;

impl Registers {
    /// Whether the port belongs to the inactive one of the two ranges of the CRTC's ports.
    fn is_inactive(&self, port: u16) -> bool {
        let colour = self.miscellaneous & COLOUR_PORTS != 0;
        match port {
            0x3b0..=0x3bf => colour,
            0x3d0..=0x3df => !colour,
            _ => false,
        }
    }

    /// Reads a port, `now` nanoseconds after the start.
    pub(crate) fn read_port(&mut self, port: u16, now: u64) -> u8 {
        if self.is_inactive(port) {
            return FLOATING;
        }
        let get =
            |registers: &[u8], index: u8| registers.get(usize::from(index)).copied().unwrap_or(0);
        match port {
            0x3c0 => self.attribute_index,
            0x3c1 => get(&self.attribute, self.attribute_index & 0x1f),
            // A colour monitor is connected, and no interrupt is pending.
            0x3c2 => 0x10,
            0x3c4 => self.sequencer_index,
            0x3c5 => get(&self.sequencer, self.sequencer_index),
            0x3c6 => self.dac.mask,
            0x3c7 => u8::from(self.dac.reading) * 3,
            0x3c8 => self.dac.write_index,
            0x3c9 => self.dac.read(self.vbe.wide_dac()),
            0x3ca => self.feature_control,
            0x3cc => self.miscellaneous,
            0x3ce => self.graphics_index,
            0x3cf => get(&self.graphics, self.graphics_index),
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => get(&self.crtc, self.crtc_index),
            0x3ba | 0x3da => {
                self.attribute_data = false;
                Timing::of(self).status(now)
            }
            _ => FLOATING,
        }
    }

    /// Writes a port.
    pub(crate) fn write_port(&mut self, port: u16, value: u8) {
        if self.is_inactive(port) {
            return;
        }
        match port {
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.miscellaneous = value,
            0x3c4 => self.sequencer_index = value & 7,
            0x3c5 => {
                // Undefined bits read as zero.
                const MASKS: [u8; sequencer::COUNT] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
                set(&mut self.sequencer, self.sequencer_index, value, &MASKS);
            }
            0x3c6 => self.dac.mask = value,
            0x3c7 => self.dac.start_reading(value),
            0x3c8 => self.dac.start_writing(value),
            0x3c9 => self.dac.write(value),
            0x3ce => self.graphics_index = value & 0xf,
            0x3cf => {
                const MASKS: [u8; graphics::COUNT] =
                    [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
                set(&mut self.graphics, self.graphics_index, value, &MASKS);
            }
            0x3b4 | 0x3d4 => self.crtc_index = value,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.feature_control = value & 0x10,
            _ => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        if self.attribute_data {
            const MASKS: [u8; attribute::COUNT] = [
                0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
                0x3f, 0x3f, 0xef, 0xff, 0x3f, 0x0f, 0x0f,
            ];
            // A real VGA ignores writes to the palette while the screen uses it; no driver relies
            // on that.
            set(&mut self.attribute, self.attribute_index & 0x1f, value, &MASKS);
        } else {
            self.attribute_index = value & 0x3f;
        }
        self.attribute_data = !self.attribute_data;
    }

    fn write_crtc(&mut self, value: u8) {
        let index = usize::from(self.crtc_index);
        let protected = self.crtc[crtc::VERTICAL_RETRACE_END] & PROTECTED != 0;
        let Some(register) = self.crtc.get_mut(index) else { return };
        *register = match index {
            crtc::OVERFLOW if protected => *register & !LINE_COMPARE_8 | value & LINE_COMPARE_8,
            0..=7 if protected => return,
            _ => value,
        };
    }
}

fn set(registers: &mut [u8], index: u8, value: u8, masks: &[u8]) {
    let index = usize::from(index);
    if let (Some(register), Some(mask)) = (registers.get_mut(index), masks.get(index)) {
        *register = value & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attribute_port_takes_turns_until_the_status_is_read() {
        let mut r = Registers::default();
        r.write_port(0x3c2, 1);
        r.read_port(0x3da, 0);
        for value in [0x01, 0x2a, 0x02, 0x3f] {
            r.write_port(0x3c0, value);
        }
        assert_eq!(r.attribute[..3], [0, 0x2a, 0x3f]);
        r.write_port(0x3c0, 0x11);
        r.read_port(0x3da, 0);
        r.write_port(0x3c0, 0x31); // an index again
        assert_eq!((r.attribute[0x11], r.read_port(0x3c0, 0)), (0, 0x31));
        r.write_port(0x3c0, 7);
        assert_eq!((r.attribute[0x11], r.read_port(0x3c1, 0)), (7, 7));
    }

    #[test]
    fn the_crtc_is_at_one_of_two_places_and_may_be_protected() {
        let mut r = Registers::default();
        r.write_port(0x3d4, 1);
        assert_eq!([r.read_port(0x3d4, 0), r.read_port(0x3b4, 0)], [0xff, 0]);
        r.write_port(0x3c2, 1);
        for (index, value) in [(1, 79), (0x11, 0x80), (1, 0), (7, 0xff), (0x40, 1)] {
            r.write_port(0x3d4, index);
            r.write_port(0x3d5, value);
        }
        assert_eq!((r.crtc[1], r.crtc[7]), (79, 0x10));
        assert_eq!([r.read_port(0x3d5, 0), r.read_port(0x3b5, 0)], [0, 0xff]);
    }
}
