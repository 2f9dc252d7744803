//! The device: video memory, registers, and what keeps the map in step with them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ram_block::{RamBlock, RamBlockError};
use thiserror::Error;

use crate::device::edid::{Edid, EdidError};
use crate::device::graphics_controller::Direct;
use crate::device::state::{self, StateError};
use crate::device::window::Window;
use crate::draw::painter::Painter;
use crate::draw::part::Part;
use crate::font;
use crate::modes::limits::VbeError;
use crate::modes::linear::Linear;
use crate::modes::mode::{Kind, Mode};
use crate::modes::raster::Row;
use crate::picture::damage::Damage;
use crate::picture::surface::Surface;
use crate::registers::register_file::Registers;
use crate::registers::retrace::Timing;
use crate::registers::text_mode;
use crate::registers::{ports, vbe};

/// A VGA that cannot be made.
#[derive(Debug, Error)]
pub enum VgaError {
    /// The size is not one that the registers can speak of.
    #[error(
        "{bytes} bytes of video memory were asked for: a multiple of 64 KiB from {} to {} is \
            needed",
        Vga::MIN_VRAM,
        Vga::MAX_VRAM
    )]
    VideoMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// There is no such block.
    #[error("Video memory cannot be had")]
    Block(#[from] RamBlockError),
}

/// The size that the monitor prefers, if nobody says another and it fits.
const PREFERRED: (u16, u16) = (1280, 800);

/// A PC's VGA with the Bochs VBE extensions.
///
/// Video memory is a block; the planes of the VGA's own modes lie in its first 256 KiB,
/// byte 4n + p being byte n of plane p. While the registers describe what cannot be shown
/// (a mode larger than video memory, one without lines) the screen is blank,
/// and [`mode`](Self::mode) says why.
///
/// All methods may be called from any thread, but not from a hook that watches code in the
/// video memory: the device may be writing there. An access that changes what the low window
/// shows changes the map before it returns.
pub struct Vga {
    vram: Arc<RamBlock>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
    /// Held while the map follows the registers; taken before `state`.
    window: Mutex<Option<Window>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) registers: Registers,
    /// Changes with every write that may change the picture.
    generation: u64,
    /// What of the low window is an alias now.
    mapped: Option<Direct>,
    /// The map is about to show something else than `mapped`.
    in_flight: bool,
    /// Whether the low window is on a map.
    is_placed: bool,
    /// What the monitor says of itself; of the machine's making, not the guest's.
    pub(crate) edid: Edid,
}

/// What the registers show, as a screen needs to know it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) generation: u64,
    pub(crate) mode: Option<Mode>,
    pub(crate) timing: Timing,
}

impl Vga {
    /// Where the low window is on the memory bus.
    pub const WINDOW: u64 = 0xa0000;
    /// The first port of the VGA's registers, of 48.
    pub const PORTS: u64 = ports::FIRST as u64;
    /// The first port of the VBE registers, of 4.
    pub const VBE_PORTS: u64 = 0x1ce;
    /// Bytes of the registers as memory.
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
    /// [`VgaError`] if there can be no such block.
    pub fn new(id: &str, vram: u64) -> Result<Arc<Self>, VgaError> {
        check_size(vram)?;
        Self::with_vram(RamBlock::anonymous(id, vram)?)
    }

    /// A VGA whose video memory is `vram`.
    ///
    /// # Errors
    ///
    /// [`VgaError::VideoMemory`].
    pub fn with_vram(vram: Arc<RamBlock>) -> Result<Arc<Self>, VgaError> {
        let start = Instant::now();
        Self::with_clock(vram, move || start.elapsed())
    }

    /// A VGA for which time is what `clock` says: its retraces and what blinks follow it.
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
        let state = Mutex::new(State { edid, ..State::default() });
        Ok(Arc::new(Self { vram, clock: Box::new(clock), state, window: Mutex::default() }))
    }

    /// The video memory.
    pub fn vram(&self) -> &Arc<RamBlock> {
        &self.vram
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Nanoseconds by the device's clock.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from((self.clock)().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Changes registers; then lets the map follow.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.registers);
        state.generation += 1;
        let wanted = state.registers.direct(self.vram.len());
        let stale = state.is_placed && (state.in_flight || state.mapped != wanted);
        drop(state);
        if stale {
            self.follow();
        }
        result
    }

    /// Writes a VBE register, or the one that the index chooses.
    pub(crate) fn write_vbe(&self, register: Option<u16>, value: u16) {
        let cleared = self.change(|registers| {
            let register = register.unwrap_or(registers.vbe.index);
            registers.vbe.write(register, value, self.vram.len())
        });
        if let Some(mode) = cleared {
            self.clear(&mode);
        }
    }

    /// Lets the monitor prefer `width` x `height` pixels, which drivers that read its EDID
    /// (Linux's `bochs`) begin with; 1280x800 if nobody says so. Carried nowhere: it is
    /// said again to a machine that a state is restored into.
    ///
    /// # Errors
    ///
    /// [`EdidError`] beyond 64 to 4,095 pixels a side.
    pub fn set_preferred_size(&self, width: u16, height: u16) -> Result<(), EdidError> {
        let edid = Edid::new(width, height, self.vram.len())?;
        self.lock().edid = edid;
        Ok(())
    }

    /// Keeps the low window in step with the registers from now on.
    pub(super) fn keep_in_step(&self, window: Window) {
        *lock(&self.window) = Some(window);
        self.lock().is_placed = true;
        self.follow();
    }

    /// Brings the low window in step with the registers.
    fn follow(&self) {
        let mut window = lock(&self.window);
        let Some(window) = window.as_mut() else { return };
        loop {
            let mut state = self.lock();
            let wanted = state.registers.direct(self.vram.len());
            // Registers that change from here on find out that the map does not follow.
            state.mapped = window.direct();
            state.in_flight = false;
            if state.mapped == wanted || window.has_refused(wanted) {
                return;
            }
            // Others may go on while the map changes, and change the registers again; those
            // that do wait here for their turn, even if they only change them back.
            state.in_flight = true;
            drop(state);
            window.follow(wanted);
        }
    }

    /// The mode that is shown; `None` if the screen is off.
    ///
    /// # Errors
    ///
    /// [`VbeError`] if the guest has enabled one that cannot be shown.
    pub fn mode(&self) -> Result<Option<Mode>, VbeError> {
        self.lock().registers.mode(self.vram.len())
    }

    /// What a screen that knows the registers as of `generation` has to learn.
    pub(crate) fn shown(&self, generation: Option<u64>) -> Option<Shown> {
        let state = self.lock();
        if generation == Some(state.generation) {
            return None;
        }
        // What cannot be shown is a blank screen; the guest may still mend it.
        let mode = state.registers.mode(self.vram.len()).ok().flatten();
        let timing = Timing::of(&state.registers);
        Some(Shown { generation: state.generation, mode, timing })
    }

    /// Shows `width` x `height` pixels of `depth` bits from the start of video memory,
    /// which is cleared, as firmware would: a screen that was switched off is switched on.
    ///
    /// # Errors
    ///
    /// [`VbeError`]; the display is as before then.
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
    /// [`RamBlockError`], which a block of this size does not give.
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

    /// The whole picture as it is now, read without regard to what changed; `None` if
    /// the screen is off.
    ///
    /// Takes no dirty bits. A guest that runs may change it meanwhile.
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
            Part::Fresh,
            &mut surface,
            &mut Damage::default(),
        )?;
        Ok(Some(surface))
    }

    /// The characters on the screen, a string a row, as code page 437 has them; `None` if
    /// no text is shown.
    ///
    /// # Errors
    ///
    /// [`RamBlockError`] if video memory cannot be read.
    pub fn text(&self) -> Result<Option<Vec<String>>, RamBlockError> {
        let Ok(Some(Mode { height, kind: Kind::Text(text), .. })) = self.mode() else {
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

    /// The registers as bytes, to be carried to another VGA. Video memory is carried
    /// separately.
    pub fn save(&self) -> Vec<u8> {
        state::save(&self.lock().registers, self.vram.len())
    }

    /// Takes over what [`save`](Self::save) gave, of a VGA with as much video memory.
    ///
    /// # Errors
    ///
    /// [`StateError`]; the display is as before then.
    pub fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let restored = state::restore(saved, self.vram.len())?;
        self.change(|registers| *registers = restored);
        Ok(())
    }

    /// The registers as after power-on. Video memory stays as it is.
    pub fn reset(&self) {
        self.change(|registers| *registers = Registers::default());
    }
}

fn check_size(bytes: u64) -> Result<(), VgaError> {
    let sound = (Vga::MIN_VRAM..=Vga::MAX_VRAM).contains(&bytes) && bytes % (64 << 10) == 0;
    if sound { Ok(()) } else { Err(VgaError::VideoMemory { bytes }) }
}

/// The registers are plain numbers, whole at any time, whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Vga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vga").field("vram", &self.vram.len()).field("mode", &self.mode()).finish()
    }
}

#[cfg(test)]
mod tests;
