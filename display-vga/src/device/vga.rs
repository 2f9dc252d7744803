//! The device: video memory, registers, and the low window's mapping, which follows them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ram_block::{RamBlock, RamBlockError};
use thiserror::Error;

use crate::clock::Instant;
use crate::device::edid::{Edid, EdidError};
use crate::device::graphics_controller::Direct;
use crate::device::state::{self, StateError};
use crate::device::window::Window;
use crate::draw::painter::Painter;
use crate::draw::part::DrawnPart;
use crate::font;
use crate::locks::lock;
use crate::modes::limits::VbeError;
use crate::modes::linear::Linear;
use crate::modes::mode::{Mode, ModeKind};
use crate::modes::raster::Row;
use crate::picture::damage::Damage;
use crate::picture::surface::Surface;
use crate::registers::register_file::Registers;
use crate::registers::retrace::Timing;
use crate::registers::text_mode;
use crate::registers::{ports, vbe};

/// Why a VGA cannot be created.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum VgaError {
    /// The size of video memory is out of range, or no multiple of 64 KiB.
    #[error(
        "{bytes} bytes of video memory were asked for: a multiple of 64 KiB from {} to {} is \
            needed",
        Vga::MIN_VRAM,
        Vga::MAX_VRAM
    )]
    VideoMemory { bytes: u64 },
    /// The block cannot be created.
    #[error("Video memory cannot be created")]
    Block(#[from] RamBlockError),
}

/// The monitor's preferred size by default, if it fits video memory.
const PREFERRED: (u16, u16) = (1280, 800);

/// A PC's VGA with the Bochs VBE extensions.
///
/// Video memory is a block; the planes of the VGA's own modes are in its first 256 KiB: byte
/// 4n + p is byte n of plane p. While the registers describe a mode that cannot be shown (one
/// larger than video memory, or without lines) the screen is blank, and [`mode`](Self::mode)
/// returns the reason.
///
/// All methods may be called from any thread, but not from a hook that watches code in video
/// memory: the device may hold its lock while it writes there. An access that changes the
/// mapping of the low window changes the map before it returns.
pub struct Vga {
    vram: Arc<RamBlock>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<VgaState>,
    /// Locked while the map is changed; taken before `state`.
    window: Mutex<Option<Window>>,
}

#[derive(Default)]
pub(crate) struct VgaState {
    pub(crate) registers: Registers,
    /// Incremented with every write that may change the picture.
    generation: u64,
    /// The part of the low window that is an alias now.
    mapped: Option<Direct>,
    /// A change of the map is under way, so `mapped` may be out of date.
    in_flight: bool,
    /// Whether the low window is on a map.
    is_placed: bool,
    /// The monitor's EDID; set by the machine, not by the guest.
    pub(crate) edid: Edid,
}

/// The mode and timing that a screen draws.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) generation: u64,
    pub(crate) mode: Option<Mode>,
    pub(crate) timing: Timing,
}

impl Vga {
    /// The address of the low window on the memory bus.
    pub const WINDOW: u64 = 0xa0000;
    /// The first port of the VGA's registers, of 48.
    pub const PORTS: u64 = ports::FIRST as u64;
    /// The first port of the VBE registers, of 4.
    pub const VBE_PORTS: u64 = 0x1ce;
    /// Bytes of the MMIO region.
    pub const MMIO_BYTES: u64 = 0x1000;
    /// The least video memory, in bytes: four planes of 64 KiB.
    pub const MIN_VRAM: u64 = 256 << 10;
    /// The most video memory, in bytes.
    pub const MAX_VRAM: u64 = 256 << 20;
    /// How much video memory guests expect, in bytes.
    pub const DEFAULT_VRAM: u64 = 16 << 20;

    /// A VGA with `vram` bytes of video memory, as block `id`, after power-on: it shows
    /// nothing until a driver sets a mode.
    ///
    /// # Errors
    ///
    /// [`VgaError`] if the size is invalid, or the block cannot be created.
    pub fn new(id: &str, vram: u64) -> Result<Arc<Self>, VgaError> {
        check_size(vram)?;
        Self::with_vram(RamBlock::anonymous(id, vram)?)
    }

    /// A VGA whose video memory is `vram`.
    ///
    /// In WebAssembly without an operating system no time passes for it, and guests that wait for a
    /// retrace wait for ever: use [`with_clock`](Self::with_clock) there.
    ///
    /// # Errors
    ///
    /// [`VgaError::VideoMemory`].
    pub fn with_vram(vram: Arc<RamBlock>) -> Result<Arc<Self>, VgaError> {
        let start = Instant::now();
        Self::with_clock(vram, move || start.elapsed())
    }

    /// A VGA that computes retraces and blinking from the time of `clock`.
    ///
    /// # Errors
    ///
    /// [`VgaError::VideoMemory`].
    pub fn with_clock(
        vram: Arc<RamBlock>,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Result<Arc<Self>, VgaError> {
        check_size(vram.len())?;
        let fits =
            |(width, height): (u16, u16)| u64::from(width) * u64::from(height) * 4 <= vram.len();
        let (width, height) = if fits(PREFERRED) { PREFERRED } else { (640, 480) };
        let edid = Edid::new(width, height, vram.len()).unwrap_or_default();
        let state = Mutex::new(VgaState { edid, ..VgaState::default() });
        Ok(Arc::new(Self { vram, clock: Box::new(clock), state, window: Mutex::default() }))
    }

    /// The video memory.
    pub fn vram(&self) -> &Arc<RamBlock> {
        &self.vram
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, VgaState> {
        lock(&self.state)
    }

    /// Nanoseconds by the device's clock.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from((self.clock)().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Changes registers; then updates the low window's alias if needed.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.registers);
        state.generation += 1;
        let wanted = state.registers.direct(self.vram.len());
        let stale = state.is_placed && (state.in_flight || state.mapped != wanted);
        drop(state);
        if stale {
            self.update_alias();
        }
        result
    }

    /// Writes a VBE register; `None` is the one that the index selects.
    pub(crate) fn write_vbe(&self, register: Option<u16>, value: u16) {
        let cleared = self.change(|registers| {
            let register = register.unwrap_or(registers.vbe.index);
            registers.vbe.write(register, value, self.vram.len())
        });
        if let Some(mode) = cleared {
            self.clear(&mode);
        }
    }

    /// Sets the preferred size of the monitor's EDID, with which drivers that read it (Linux's
    /// `bochs`) begin; 1280x800 by default. Not part of the saved state: call this again for a
    /// machine into which a state is restored.
    ///
    /// # Errors
    ///
    /// [`EdidError`] beyond 64 to 4,095 pixels a side.
    pub fn set_preferred_size(&self, width: u16, height: u16) -> Result<(), EdidError> {
        let edid = Edid::new(width, height, self.vram.len())?;
        self.lock().edid = edid;
        Ok(())
    }

    /// Updates the low window's alias by the registers from now on.
    pub(super) fn attach_window(&self, window: Window) {
        *lock(&self.window) = Some(window);
        self.lock().is_placed = true;
        self.update_alias();
    }

    /// Updates the low window's alias until it matches the registers.
    fn update_alias(&self) {
        let mut window = lock(&self.window);
        let Some(window) = window.as_mut() else { return };
        loop {
            let mut state = self.lock();
            let wanted = state.registers.direct(self.vram.len());
            // A register write from here on finds `mapped` up to date, and calls this if it
            // does not match.
            state.mapped = window.direct();
            state.in_flight = false;
            if state.mapped == wanted || window.has_refused(wanted) {
                return;
            }
            // The lock of the registers is released while the map changes. Threads that change
            // them meanwhile see `in_flight` and wait for the `window` lock above, even if they
            // change them back to what is mapped.
            state.in_flight = true;
            drop(state);
            window.update_alias(wanted);
        }
    }

    /// The current mode; `None` if the screen is off.
    ///
    /// # Errors
    ///
    /// [`VbeError`] if the guest has enabled a VBE mode that cannot be shown.
    pub fn mode(&self) -> Result<Option<Mode>, VbeError> {
        self.lock().registers.mode(self.vram.len())
    }

    /// The mode and timing, unless they are still those of `generation`.
    pub(crate) fn shown(&self, generation: Option<u64>) -> Option<Shown> {
        let state = self.lock();
        if generation == Some(state.generation) {
            return None;
        }
        // A mode that cannot be shown is a blank screen, until the guest corrects it.
        let mode = state.registers.mode(self.vram.len()).ok().flatten();
        let timing = Timing::of(&state.registers);
        Some(Shown { generation: state.generation, mode, timing })
    }

    /// Sets a VBE mode of `width` x `height` pixels of `depth` bits from the start of video memory,
    /// as firmware would: clears the memory, and switches the screen on.
    ///
    /// # Errors
    ///
    /// [`VbeError`]; the display is then unchanged.
    pub fn set_mode(&self, width: u16, height: u16, depth: u16) -> Result<(), VbeError> {
        let mode = self.change(|registers| {
            let mut wanted = registers.vbe.clone();
            for (register, value) in [
                (vbe::X_RESOLUTION, width),
                (vbe::Y_RESOLUTION, height),
                (vbe::BITS_PER_PIXEL, depth),
                (vbe::VIRTUAL_WIDTH, width),
                (vbe::X_OFFSET, 0),
                (vbe::Y_OFFSET, 0),
                (vbe::BANK, 0),
                (vbe::ENABLE, vbe::ENABLED | vbe::LINEAR_FRAME_BUFFER),
            ] {
                wanted.set(register, value);
            }
            let mode = wanted.described(self.vram.len())?;
            registers.vbe = wanted;
            registers.show_screen();
            Ok(mode)
        })?;
        self.clear(&mode);
        Ok(())
    }

    /// Sets the text mode of 80x25 characters that a PC's firmware leaves behind (mode 3,
    /// 720x400), with a blank screen and the built-in glyphs in plane 2: for guests that
    /// are started without firmware.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`], which does not happen with a block of this size.
    pub fn set_text_mode(&self) -> Result<(), RamBlockError> {
        self.change(|registers| *registers = text_mode::registers());
        let glyphs = font::map();
        let units = (0u64..).zip(&glyphs).map(|(n, glyph)| {
            let cell = if n < text_mode::CELLS.into() { text_mode::BLANK } else { [0; 2] };
            [cell[0], cell[1], *glyph, 0]
        });
        self.vram.write(0, &units.flatten().collect::<Vec<u8>>())
    }

    pub(crate) fn clear(&self, mode: &Linear) {
        let zeros = vec![0; usize::try_from(mode.line_bytes()).unwrap_or(0)];
        for line in 0..mode.height {
            if let Err(error) = self.vram.write(mode.line(line).start, &zeros) {
                log::error!("vga: {error}"); // a mode lies within video memory
            }
        }
    }

    /// Draws the whole picture as it is now; `None` if the screen is off.
    ///
    /// Takes no dirty bits. A running guest may change video memory meanwhile.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if video memory cannot be read.
    pub fn screenshot(&self) -> Result<Option<Surface>, RamBlockError> {
        let Some(Shown { mode: Some(mode), timing, .. }) = self.shown(None) else {
            return Ok(None);
        };
        let mut surface = Surface::new(mode.width, mode.height);
        let blink = timing.blink(self.now());
        let mut painter = Painter::default();
        painter.draw(
            &self.vram,
            &mode,
            blink,
            DrawnPart::Fresh,
            &mut surface,
            &mut Damage::default(),
        )?;
        Ok(Some(surface))
    }

    /// The characters on the screen by code page 437, a string per row; `None` if the mode is not
    /// a text mode.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if video memory cannot be read.
    pub fn text(&self) -> Result<Option<Vec<String>>, RamBlockError> {
        let Ok(Some(Mode { height, kind: ModeKind::Text(text), .. })) = self.mode() else {
            return Ok(None);
        };
        let row = |row: Row| {
            (0..text.columns)
                .map(|column| {
                    let mut code = [0];
                    let address = row.address.wrapping_add(column) & text.raster.mask;
                    self.vram.read(u64::from(address) * 4, &mut code)?;
                    Ok(font::character(code[0]))
                })
                .collect()
        };
        text.rows(height).map(row).collect::<Result<_, _>>().map(Some)
    }

    /// Saves the registers, to be restored into another VGA. Video memory is not included.
    pub fn save(&self) -> Vec<u8> {
        state::save(&self.lock().registers, self.vram.len())
    }

    /// Restores registers that [`save`](Self::save) returned, of a VGA with as much video memory.
    ///
    /// # Errors
    ///
    /// [`StateError`]; the display is then unchanged.
    pub fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let restored = state::restore(saved, self.vram.len())?;
        self.change(|registers| *registers = restored);
        Ok(())
    }

    /// Resets the registers to those after power-on. Video memory is unchanged.
    pub fn reset(&self) {
        self.change(|registers| *registers = Registers::default());
    }
}

fn check_size(bytes: u64) -> Result<(), VgaError> {
    let sound = (Vga::MIN_VRAM..=Vga::MAX_VRAM).contains(&bytes) && bytes % (64 << 10) == 0;
    if sound { Ok(()) } else { Err(VgaError::VideoMemory { bytes }) }
}

impl fmt::Debug for Vga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vga").field("vram", &self.vram.len()).field("mode", &self.mode()).finish()
    }
}

#[cfg(test)]
mod tests;
