//! The registers of a VGA: plain numbers, which [`decode`](super::decode) and
//! `graphics_controller` interpret.
//!
//! Numbers and bits are those of IBM's "Personal System/2 Hardware Interface Technical
//! Reference", Video Subsystem, and of the FreeVGA documentation.

use crate::registers::dac::Dac;
use crate::registers::vbe::Vbe;

/// Registers of the sequencer.
pub(crate) mod sequencer {
    pub(crate) const COUNT: usize = 5;
    pub(crate) const CLOCKING_MODE: usize = 1;
    pub(crate) const MAP_MASK: usize = 2;
    pub(crate) const CHARACTER_MAP: usize = 3;
    pub(crate) const MEMORY_MODE: usize = 4;
    /// Bit of the clocking mode: the screen is off.
    pub(crate) const SCREEN_OFF: u8 = 0x20;
}

/// Registers of the CRT controller.
pub(crate) mod crtc {
    pub(crate) const COUNT: usize = 0x19;
    pub(crate) const HORIZONTAL_TOTAL: usize = 0;
    pub(crate) const HORIZONTAL_DISPLAY_END: usize = 1;
    pub(crate) const VERTICAL_TOTAL: usize = 6;
    pub(crate) const OVERFLOW: usize = 7;
    pub(crate) const PRESET_ROW_SCAN: usize = 8;
    pub(crate) const MAXIMUM_SCAN_LINE: usize = 9;
    pub(crate) const CURSOR_START: usize = 0xa;
    pub(crate) const CURSOR_END: usize = 0xb;
    pub(crate) const START_ADDRESS_HIGH: usize = 0xc;
    pub(crate) const START_ADDRESS_LOW: usize = 0xd;
    pub(crate) const CURSOR_HIGH: usize = 0xe;
    pub(crate) const CURSOR_LOW: usize = 0xf;
    pub(crate) const VERTICAL_RETRACE_START: usize = 0x10;
    pub(crate) const VERTICAL_RETRACE_END: usize = 0x11;
    pub(crate) const VERTICAL_DISPLAY_END: usize = 0x12;
    pub(crate) const OFFSET: usize = 0x13;
    pub(crate) const UNDERLINE: usize = 0x14;
    pub(crate) const MODE_CONTROL: usize = 0x17;
    pub(crate) const LINE_COMPARE: usize = 0x18;
}

/// Registers of the graphics controller.
pub(crate) mod graphics {
    pub(crate) const COUNT: usize = 9;
    pub(crate) const SET_RESET: usize = 0;
    pub(crate) const ENABLE_SET_RESET: usize = 1;
    pub(crate) const COLOUR_COMPARE: usize = 2;
    pub(crate) const ROTATE: usize = 3;
    pub(crate) const READ_MAP: usize = 4;
    pub(crate) const MODE: usize = 5;
    pub(crate) const MISCELLANEOUS: usize = 6;
    pub(crate) const COLOUR_DONT_CARE: usize = 7;
    pub(crate) const BIT_MASK: usize = 8;
}

/// Registers of the attribute controller.
pub(crate) mod attribute {
    pub(crate) const COUNT: usize = 0x15;
    pub(crate) const MODE_CONTROL: usize = 0x10;
    pub(crate) const PLANE_ENABLE: usize = 0x12;
    pub(crate) const PANNING: usize = 0x13;
    pub(crate) const COLOUR_SELECT: usize = 0x14;
    /// Bit of the index (palette address source): the screen uses the palette, and is on.
    pub(crate) const SCREEN_ON: u8 = 0x20;
}

/// The state of a VGA except its video memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) miscellaneous: u8,
    pub(crate) feature_control: u8,
    pub(crate) sequencer_index: u8,
    pub(crate) sequencer: [u8; sequencer::COUNT],
    pub(crate) crtc_index: u8,
    pub(crate) crtc: [u8; crtc::COUNT],
    pub(crate) graphics_index: u8,
    pub(crate) graphics: [u8; graphics::COUNT],
    pub(crate) attribute_index: u8,
    pub(crate) attribute: [u8; attribute::COUNT],
    /// The flip-flop: whether the next write to the attribute port is data.
    pub(crate) attribute_data: bool,
    pub(crate) dac: Dac,
    pub(crate) vbe: Vbe,
    /// One byte of each plane, as of the processor's last read.
    pub(crate) latches: [u8; 4],
}

impl Default for Registers {
    /// After power-on: the screen is blank until a driver sets a mode.
    ///
    /// The attribute controller's `SCREEN_ON` is set: drivers that use only the VBE registers do
    /// not set it.
    fn default() -> Self {
        Self {
            miscellaneous: 0,
            feature_control: 0,
            sequencer_index: 0,
            sequencer: [0; sequencer::COUNT],
            crtc_index: 0,
            crtc: [0; crtc::COUNT],
            graphics_index: 0,
            graphics: [0; graphics::COUNT],
            attribute_index: attribute::SCREEN_ON,
            attribute: [0; attribute::COUNT],
            attribute_data: false,
            dac: Dac::default(),
            vbe: Vbe::default(),
            latches: [0; 4],
        }
    }
}

impl Registers {
    /// A number whose bits 8 and 9 are in the overflow register or, for the line compare, also in
    /// the maximum scan line register.
    fn with_overflow(&self, low: usize, bits: [(usize, u8); 2]) -> u32 {
        let bit = |(register, bit): (usize, u8)| u32::from(self.crtc[register] >> bit & 1);
        u32::from(self.crtc[low]) | bit(bits[0]) << 8 | bit(bits[1]) << 9
    }

    /// Switches the screen on: clears the sequencer's `SCREEN_OFF`, and sets the attribute
    /// controller's `SCREEN_ON`.
    pub(crate) fn show_screen(&mut self) {
        self.sequencer[sequencer::CLOCKING_MODE] &= !sequencer::SCREEN_OFF;
        self.attribute_index |= attribute::SCREEN_ON;
    }

    /// The last displayed scan line, in counts of the vertical counter.
    pub(crate) fn vertical_display_end(&self) -> u32 {
        self.with_overflow(crtc::VERTICAL_DISPLAY_END, [(crtc::OVERFLOW, 1), (crtc::OVERFLOW, 6)])
    }

    /// Scan lines of a frame, less two.
    pub(crate) fn vertical_total(&self) -> u32 {
        self.with_overflow(crtc::VERTICAL_TOTAL, [(crtc::OVERFLOW, 0), (crtc::OVERFLOW, 5)])
    }

    /// The scan line at which the retrace begins.
    pub(crate) fn vertical_retrace_start(&self) -> u32 {
        self.with_overflow(crtc::VERTICAL_RETRACE_START, [(crtc::OVERFLOW, 2), (crtc::OVERFLOW, 7)])
    }

    /// The last scan line before the split.
    pub(crate) fn line_compare(&self) -> u32 {
        let bits = [(crtc::OVERFLOW, 4), (crtc::MAXIMUM_SCAN_LINE, 6)];
        self.with_overflow(crtc::LINE_COMPARE, bits)
    }

    /// Two neighbouring CRTC registers, the high one first.
    pub(crate) fn crtc_pair(&self, high: usize, low: usize) -> u32 {
        u32::from(u16::from_be_bytes([self.crtc[high], self.crtc[low]]))
    }
}
