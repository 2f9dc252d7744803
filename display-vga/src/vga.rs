//! The device: video memory and the Bochs VBE registers.
//!
//! The interface is that of the Bochs VBE extensions, version 5: an index port, at
//! 0x1CE, chooses a 16-bit register, and a data port, at 0x1CF (and 0x1D0, where
//! processors without unaligned ports look), accesses it. As in QEMU's device,
//! registers take what is written at any time, and offsets that do not fit the virtual
//! screen are reset.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::MmioDevice;
use ram_block::{RamBlock, RamBlockError};

use crate::mode::{Mode, VbeError};
use crate::surface::Surface;

// Register numbers.
const ID: u16 = 0;
const X_RESOLUTION: u16 = 1;
const Y_RESOLUTION: u16 = 2;
const BITS_PER_PIXEL: u16 = 3;
const ENABLE: u16 = 4;
const BANK: u16 = 5;
const VIRTUAL_WIDTH: u16 = 6;
const VIRTUAL_HEIGHT: u16 = 7;
const X_OFFSET: u16 = 8;
const Y_OFFSET: u16 = 9;
const VIDEO_MEMORY_64K: u16 = 10;

/// How many registers hold a value.
const REGISTERS: usize = 10;

// Bits of ENABLE.
const ENABLED: u16 = 1;
const GET_CAPABILITIES: u16 = 1 << 1;
const LINEAR_FRAME_BUFFER: u16 = 1 << 6;
const KEEP_MEMORY: u16 = 1 << 7;

const OLDEST_ID: u16 = 0xb0c0;
const NEWEST_ID: u16 = 0xb0c5;

/// The registers of a [`Vga`], to be carried to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgaState {
    index: u16,
    registers: [u16; REGISTERS],
}

impl Default for VgaState {
    fn default() -> Self {
        let mut registers = [0; REGISTERS];
        registers[usize::from(ID)] = NEWEST_ID;
        Self { index: 0, registers }
    }
}

impl VgaState {
    fn get(&self, register: u16) -> u16 {
        self.registers.get(usize::from(register)).copied().unwrap_or(0)
    }

    fn set(&mut self, register: u16, value: u16) {
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = value;
        }
    }

    /// The mode that the registers describe, were it enabled.
    fn described(&self, vram: u64) -> Result<Mode, VbeError> {
        let get = |register| u32::from(self.get(register));
        let geometry = (get(X_RESOLUTION), get(Y_RESOLUTION), get(BITS_PER_PIXEL));
        Mode::new(geometry, get(VIRTUAL_WIDTH), (get(X_OFFSET), get(Y_OFFSET)), vram)
    }

    fn is_enabled(&self) -> bool {
        self.get(ENABLE) & ENABLED != 0
    }

    /// The mode that is shown.
    fn mode(&self, vram: u64) -> Result<Option<Mode>, VbeError> {
        if self.is_enabled() { self.described(vram).map(Some) } else { Ok(None) }
    }

    /// Puts right what a shown mode cannot have: a virtual screen narrower than the
    /// visible one, and offsets with which the visible part leaves video memory.
    fn fix_up(&mut self, vram: u64) {
        if !self.is_enabled() {
            return;
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

/// A VGA with a linear frame buffer of 32 bits per pixel.
///
/// A guest finds its registers at the ports and its video memory wherever the map
/// places it. While its registers describe what cannot be shown (a mode larger than
/// video memory, another depth), the screen is blank, and [`mode`](Self::mode) says why.
pub struct Vga {
    vram: Arc<RamBlock>,
    state: Mutex<VgaState>,
}

impl Vga {
    /// The first port of the registers.
    pub const FIRST_PORT: u64 = 0x1ce;
    /// How many ports they take: the size of their region.
    pub const PORTS: u128 = 4;

    /// A VGA with `vram` bytes of video memory, as block `id`.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if there can be no such block.
    pub fn new(id: &str, vram: u64) -> Result<Arc<Self>, RamBlockError> {
        Ok(Self::with_vram(RamBlock::anonymous(id, vram)?))
    }

    /// A VGA whose video memory is `vram`.
    pub fn with_vram(vram: Arc<RamBlock>) -> Arc<Self> {
        Arc::new(Self { vram, state: Mutex::default() })
    }

    /// The video memory.
    pub fn vram(&self) -> &Arc<RamBlock> {
        &self.vram
    }

    fn lock(&self) -> MutexGuard<'_, VgaState> {
        // The registers are plain numbers: whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mode that is shown; `None` if none is enabled.
    ///
    /// # Errors
    ///
    /// [`VbeError`] if the guest has enabled one that cannot be shown.
    pub fn mode(&self) -> Result<Option<Mode>, VbeError> {
        self.lock().mode(self.vram.len())
    }

    /// Shows `width` x `height` pixels of `depth` bits from the start of video memory,
    /// which is cleared, as a guest's driver would.
    ///
    /// # Errors
    ///
    /// [`VbeError`]; the display is as before then.
    pub fn set_mode(&self, width: u16, height: u16, depth: u16) -> Result<(), VbeError> {
        let mut wanted = *self.lock();
        for (register, value) in [
            (X_RESOLUTION, width),
            (Y_RESOLUTION, height),
            (BITS_PER_PIXEL, depth),
            (VIRTUAL_WIDTH, width),
            (X_OFFSET, 0),
            (Y_OFFSET, 0),
            (ENABLE, ENABLED | LINEAR_FRAME_BUFFER),
        ] {
            wanted.set(register, value);
        }
        let mode = wanted.described(self.vram.len())?;
        *self.lock() = wanted;
        self.clear(&mode);
        Ok(())
    }

    fn clear(&self, mode: &Mode) {
        let zeros = vec![0; usize::try_from(mode.line_bytes()).unwrap_or(0)];
        for line in 0..mode.height() {
            if let Err(error) = self.vram.write(mode.line(line).start, &zeros) {
                log::error!("vga: {error}"); // a mode lies within video memory
            }
        }
    }

    /// The whole picture as it is now, read without regard to what changed; `None` if
    /// no mode is shown.
    ///
    /// Takes no dirty bits. A guest that runs may change it meanwhile.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if video memory cannot be read.
    pub fn picture(&self) -> Result<Option<Surface>, RamBlockError> {
        let Ok(Some(mode)) = self.mode() else { return Ok(None) };
        let mut surface = Surface::new(mode.width(), mode.height());
        for y in 0..mode.height() {
            self.vram.read(mode.line(y).start, surface.lines_mut(y, 1))?;
        }
        Ok(Some(surface))
    }

    /// The registers, to be carried to another VGA.
    pub fn state(&self) -> VgaState {
        *self.lock()
    }

    /// Takes over registers of another VGA. Video memory is carried separately.
    ///
    /// # Errors
    ///
    /// [`VbeError`] if they show what this one's video memory does not hold; the
    /// display is as before then.
    pub fn set_state(&self, state: VgaState) -> Result<(), VbeError> {
        state.mode(self.vram.len())?;
        *self.lock() = state;
        Ok(())
    }

    fn read_register(&self) -> u16 {
        let state = self.lock();
        let capabilities = state.get(ENABLE) & GET_CAPABILITIES != 0;
        let wide = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        match state.index {
            X_RESOLUTION if capabilities => wide(Mode::MAX_WIDTH),
            Y_RESOLUTION if capabilities => wide(Mode::MAX_HEIGHT),
            BITS_PER_PIXEL if capabilities => 32,
            VIRTUAL_HEIGHT => {
                let width = state.get(VIRTUAL_WIDTH).max(state.get(X_RESOLUTION));
                let lines = self.vram.len().checked_div(u64::from(width) * 4).unwrap_or(0);
                u16::try_from(lines).unwrap_or(u16::MAX)
            }
            VIDEO_MEMORY_64K => u16::try_from(self.vram.len() >> 16).unwrap_or(u16::MAX),
            register => state.get(register),
        }
    }

    fn write_register(&self, value: u16) {
        let mut state = self.lock();
        let register = state.index;
        let was_enabled = state.is_enabled();
        match register {
            ID if !(OLDEST_ID..=NEWEST_ID).contains(&value) => return,
            // There are no banks: the window of old shows nothing yet.
            BANK | VIRTUAL_HEIGHT | VIDEO_MEMORY_64K => return,
            ENABLE if value & ENABLED != 0 && !was_enabled => {
                let width = state.get(X_RESOLUTION);
                state.set(VIRTUAL_WIDTH, width);
                state.set(X_OFFSET, 0);
                state.set(Y_OFFSET, 0);
            }
            _ => {}
        }
        state.set(register, value);
        state.fix_up(self.vram.len());
        let mode = state.mode(self.vram.len());
        drop(state);
        match mode {
            Ok(Some(mode)) if !was_enabled => {
                log::debug!("vga: {}x{}", mode.width(), mode.height());
                if value & KEEP_MEMORY == 0 {
                    self.clear(&mode);
                }
            }
            Ok(_) => {}
            Err(error) => log::debug!("vga: nothing is shown: {error}"),
        }
    }
}

impl MmioDevice for Vga {
    fn read(&self, offset: u64, size: usize) -> u64 {
        match (offset, size) {
            (0, 2) => u64::from(self.lock().index),
            (1 | 2, 2) => u64::from(self.read_register()),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let [low, high, ..] = value.to_le_bytes();
        let value = u16::from_le_bytes([low, high]);
        match (offset, size) {
            (0, 2) => self.lock().index = value,
            (1 | 2, 2) => self.write_register(value),
            _ => {}
        }
    }
}

impl fmt::Debug for Vga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vga").field("vram", &self.vram.len()).field("mode", &self.mode()).finish()
    }
}

#[cfg(test)]
mod tests;
