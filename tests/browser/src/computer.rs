//! The machine with its display and its keyboard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use display_vga::{Refresh, RefreshError, Screen, Vga, VgaError};
use memory_region::MapError;
use ram_block::{RamBlock, RamBlockError};
use rv64::{Machine, MachineError, Outcome, TICKS_A_SECOND};
use thiserror::Error;

use crate::canvas::Canvas;
use crate::guest::guest;
use crate::layout;

/// Why there is no computer.
#[derive(Debug, Error)]
pub enum ComputerError {
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The VGA cannot be put on its map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There is no video memory.
    #[error(transparent)]
    VideoMemory(#[from] RamBlockError),
    /// The VGA cannot be made.
    #[error(transparent)]
    Vga(#[from] VgaError),
    /// Its screen cannot be made.
    #[error(transparent)]
    Screen(#[from] RefreshError),
}

/// Why a key is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// Bit 7 says that a key is released, and 0 is no key.
    #[error("Key {code:#x} was pressed, there are 0x01 to 0x7f")]
    NoKey {
        /// What was pressed.
        code: u32,
    },
    /// The guest has not read the last ones.
    #[error("The guest has not read {} keys", Computer::MAX_UNREAD)]
    Full,
}

/// rv64's machine with one hart, on whose map a VGA is, and the [`guest`] in its memory.
#[derive(Debug)]
pub struct Computer {
    machine: Machine,
    vga: Arc<Vga>,
    screen: Screen,
    canvas: Canvas,
    /// The guest's time for the VGA, in ticks.
    time: Arc<AtomicU64>,
}

impl Computer {
    /// Keys, pressed and released, that wait for the guest at most.
    pub const MAX_UNREAD: usize = 64;

    /// A computer that is switched on: the guest runs from its first instruction.
    ///
    /// # Errors
    ///
    /// [`ComputerError`]: there is no memory.
    pub fn new() -> Result<Self, ComputerError> {
        let machine = Machine::new(layout::RAM_BYTES, 1)?;
        machine.load(0, &guest())?;
        let vram = RamBlock::anonymous("vga.vram", layout::VRAM_BYTES)?;
        let time = Arc::new(AtomicU64::new(0));
        // The host may have no clock, and this one makes two runs the same.
        let clock = {
            let time = time.clone();
            let nanoseconds = 1_000_000_000 / TICKS_A_SECOND;
            move || Duration::from_nanos(time.load(Ordering::Relaxed).saturating_mul(nanoseconds))
        };
        let vga = Vga::with_clock(vram, clock)?;
        let memory = machine.memory();
        let regions = vga.add_to(memory)?;
        let system = machine.space().root();
        memory.transaction(|map| {
            map.add_subregion(system, layout::VRAM, regions.vram)?;
            map.add_subregion(system, layout::REGISTERS, regions.mmio)
        })?;
        let screen = Screen::new(memory.clone(), vga.clone(), regions.vram)?;
        Ok(Self { machine, vga, screen, canvas: Canvas::default(), time })
    }

    /// Runs the guest for so many ticks of its clock ([`TICKS_A_SECOND`]). The VGA's retraces and
    /// blinking are of the time at which this was called.
    pub fn run_for(&mut self, ticks: u64) -> Outcome {
        let outcome = self.machine.run_for(ticks);
        let time = self.machine.board().clint.time();
        self.time.store(time, Ordering::Relaxed);
        outcome
    }

    /// Presses or releases a key of the PC's scan code set 1: the guest receives its code, with bit
    /// 7 set for a release, by the serial port.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; the guest receives nothing then.
    pub fn key(&self, code: u32, is_down: bool) -> Result<(), KeyError> {
        let key = u8::try_from(code).ok().filter(|key| (1..0x80).contains(key));
        let key = key.ok_or(KeyError::NoKey { code })?;
        let uart = &mut self.machine.board().uart;
        if uart.unread() >= Self::MAX_UNREAD {
            return Err(KeyError::Full);
        }
        uart.receive(&[key | if is_down { 0 } else { 0x80 }]);
        Ok(())
    }

    /// Draws on the canvas what has changed, and returns the damage.
    ///
    /// # Errors
    ///
    /// [`RefreshError`]; the next call draws these changes.
    pub fn refresh(&mut self) -> Result<&Refresh, RefreshError> {
        self.screen.refresh()?;
        self.canvas.update(self.screen.surface(), &self.screen.last().damage);
        Ok(self.screen.last())
    }

    /// The result of the last refresh.
    pub fn last(&self) -> &Refresh {
        self.screen.last()
    }

    /// The picture as of the last refresh; empty before the guest has set a mode.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// Instructions that the guest has executed.
    pub fn instructions(&self) -> u64 {
        self.machine.hart(0).state.instret
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The display, as the guest has it.
    pub fn vga(&self) -> &Arc<Vga> {
        &self.vga
    }

    /// The display as it is drawn.
    pub fn screen(&self) -> &Screen {
        &self.screen
    }
}
