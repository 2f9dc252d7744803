//! The registers of the Bochs VBE extensions, version 5.
//!
//! An index port, at 0x1CE, selects a 16-bit register, and a data port, at 0x1CF (and
//! 0x1D0, for processors without unaligned port accesses), accesses it. As in QEMU's device,
//! registers can be written at any time. While a mode is enabled, an unknown depth becomes 8
//! (guests of the first versions do not write the depth), and offsets that exceed video memory
//! are reset. Unlike in QEMU's device, sizes are not adjusted: with an impossible size the
//! screen is blank, and widths need not be multiples of 8.

use crate::modes::limits::{MAX_HEIGHT, MAX_WIDTH, VbeError};
use crate::modes::linear::{Format, Linear};

// Register numbers.
pub(crate) const ID: u16 = 0;
pub(crate) const X_RESOLUTION: u16 = 1;
pub(crate) const Y_RESOLUTION: u16 = 2;
pub(crate) const BITS_PER_PIXEL: u16 = 3;
pub(crate) const ENABLE: u16 = 4;
pub(crate) const BANK: u16 = 5;
pub(crate) const VIRTUAL_WIDTH: u16 = 6;
pub(crate) const VIRTUAL_HEIGHT: u16 = 7;
pub(crate) const X_OFFSET: u16 = 8;
pub(crate) const Y_OFFSET: u16 = 9;
pub(crate) const VIDEO_MEMORY_64K: u16 = 10;

/// How many registers hold a value.
pub(crate) const REGISTERS: usize = 10;

// Bits of ENABLE.
pub(crate) const ENABLED: u16 = 1;
const GET_CAPABILITIES: u16 = 1 << 1;
const WIDE_DAC: u16 = 1 << 5;
pub(crate) const LINEAR_FRAME_BUFFER: u16 = 1 << 6;
const KEEP_MEMORY: u16 = 1 << 7;

const OLDEST_ID: u16 = 0xb0c0;
const NEWEST_ID: u16 = 0xb0c5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vbe {
    pub(crate) index: u16,
    pub(crate) registers: [u16; REGISTERS],
}

impl Default for Vbe {
    fn default() -> Self {
        let mut registers = [0; REGISTERS];
        registers[usize::from(ID)] = NEWEST_ID;
        Self { index: 0, registers }
    }
}

impl Vbe {
    pub(crate) fn get(&self, register: u16) -> u16 {
        self.registers.get(usize::from(register)).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, register: u16, value: u16) {
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = value;
        }
    }

    /// Whether a VBE mode is enabled, and replaces the mode of the VGA's registers.
    pub(crate) fn is_enabled(&self) -> bool {
        self.get(ENABLE) & ENABLED != 0
    }

    /// Whether the palette has 8 bits per component, and not 6.
    pub(crate) fn wide_dac(&self) -> bool {
        self.is_enabled() && self.get(ENABLE) & WIDE_DAC != 0
    }

    /// Whether pixels are packed, of 8 bits or more, and not in planes.
    pub(crate) fn is_packed(&self) -> bool {
        self.get(BITS_PER_PIXEL) > 4
    }

    /// The offset in video memory of the bank that the window at 0xA0000 shows, in bytes.
    pub(crate) fn bank_offset(&self) -> u64 {
        if self.is_enabled() { u64::from(self.get(BANK)) << 16 } else { 0 }
    }

    /// The mode that the registers describe, enabled or not, with `vram` bytes of video memory.
    pub(crate) fn described(&self, vram: u64) -> Result<Linear, VbeError> {
        let get = |register| u32::from(self.get(register));
        Linear::new(
            (get(X_RESOLUTION), get(Y_RESOLUTION), get(BITS_PER_PIXEL)),
            get(VIRTUAL_WIDTH),
            (get(X_OFFSET), get(Y_OFFSET)),
            vram,
        )
    }

    /// Reads a register.
    pub(crate) fn read(&self, register: u16, vram: u64) -> u16 {
        let capabilities = self.get(ENABLE) & GET_CAPABILITIES != 0;
        let narrow = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        match register {
            X_RESOLUTION if capabilities => narrow(MAX_WIDTH.into()),
            Y_RESOLUTION if capabilities => narrow(MAX_HEIGHT.into()),
            BITS_PER_PIXEL if capabilities => 32,
            VIRTUAL_HEIGHT => {
                let width = self.get(VIRTUAL_WIDTH).max(self.get(X_RESOLUTION));
                let bits = match self.get(BITS_PER_PIXEL) {
                    15 => 16,
                    bits => u64::from(bits),
                };
                narrow((vram * 8).checked_div(u64::from(width) * bits).unwrap_or(0))
            }
            VIDEO_MEMORY_64K => narrow(vram >> 16),
            register => self.get(register),
        }
    }

    /// Writes a register. If that enables a mode without `KEEP_MEMORY`, returns the mode: the
    /// caller clears its memory.
    pub(crate) fn write(&mut self, register: u16, value: u16, vram: u64) -> Option<Linear> {
        let was_enabled = self.is_enabled();
        // Bits 14 and 15 select read or write accesses; here the bank is for both.
        let value = if register == BANK { value & 0x3fff } else { value };
        match register {
            ID if !(OLDEST_ID..=NEWEST_ID).contains(&value) => return None,
            BANK if u64::from(value) << 16 >= vram => return None,
            VIRTUAL_HEIGHT | VIDEO_MEMORY_64K => return None,
            ENABLE if value & ENABLED != 0 && !was_enabled => {
                self.set(VIRTUAL_WIDTH, self.get(X_RESOLUTION));
                for reset in [X_OFFSET, Y_OFFSET, BANK] {
                    self.set(reset, 0);
                }
            }
            _ => {}
        }
        self.set(register, value);
        self.fix_up(vram);
        if was_enabled || !self.is_enabled() {
            return None;
        }
        match self.described(vram) {
            Ok(mode) => {
                log::debug!("vga: {}x{}", mode.width, mode.height);
                (value & KEEP_MEMORY == 0).then_some(mode)
            }
            Err(error) => {
                log::debug!("vga: the VBE mode cannot be shown: {error}");
                None
            }
        }
    }

    /// Corrects the registers of an enabled mode: an unknown depth, a virtual screen narrower than
    /// the visible one, and offsets with which the visible part exceeds video memory.
    fn fix_up(&mut self, vram: u64) {
        if !self.is_enabled() {
            return;
        }
        if Format::of_depth(self.get(BITS_PER_PIXEL).into()).is_err() {
            self.set(BITS_PER_PIXEL, 8);
        }
        let width = self.get(VIRTUAL_WIDTH).max(self.get(X_RESOLUTION));
        self.set(VIRTUAL_WIDTH, width);
        for offset in [Y_OFFSET, X_OFFSET] {
            if matches!(self.described(vram), Err(VbeError::TooLarge { .. })) {
                self.set(offset, 0);
            }
        }
    }
}
