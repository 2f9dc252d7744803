//! The machine: harts, memory and devices.

use std::sync::{Arc, MutexGuard};

use memory_region::{AddressSpace, MapError, MemoryMap, RegionId};
use ram_block::{DirtyError, RamBlock, RamBlockError};
use thiserror::Error;

use crate::bus::bus::Bus;
use crate::bus::code_pages::CodePages;
use crate::bus::tlb_bus::TlbBus;
use crate::devices::clint::CLINT_SIZE;
use crate::hart::hart::{Exit, Hart};
use crate::machine::board::{Board, Shared};
use crate::machine::layout;

/// Why a machine cannot be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Its map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Its memory.
    #[error(transparent)]
    Ram(#[from] RamBlockError),
    /// The watch over its code, or a log.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
}

/// How a machine has gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each hart has had its instructions, or waits.
    Steps,
    /// The guest has ended the machine with this code; 0 is success.
    Finished(u32),
    /// All harts wait, and no timer is set.
    Idle,
}

/// Instructions of each hart in a tick of the clock: 10 ticks in a microsecond at 1 GHz.
pub(super) const INSTRUCTIONS_A_TICK: u64 = 100;
/// Instructions of one hart before it is the next one's turn.
const SLICE: u64 = 1000;

/// A hart and its way to memory.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) hart: Hart,
    pub(super) bus: TlbBus<Shared>,
    /// Whether it waits for an interrupt.
    pub(super) waits: bool,
}

impl Core {
    /// Whether there is something to do.
    pub(super) fn is_ready(&self) -> bool {
        !self.waits || self.hart.is_awake()
    }

    /// Ends a reservation: memory or registers are no longer those that it was made with.
    pub(super) fn clear_reservation(&mut self) {
        self.bus.clear_reservation();
    }

    /// Executes up to `steps` instructions; returns how many there were.
    pub(super) fn run(&mut self, steps: u64) -> u64 {
        let (exit, done) = self.hart.run(&mut self.bus, steps);
        self.waits = exit == Exit::Wait;
        done
    }
}

/// A machine. Its clock counts instructions, so that two runs are the same; with each hart on a
/// thread of its own ([`run_on_threads`](Self::run_on_threads)) it is the host's.
///
/// ```
/// use rv64::assemble::{Program, reg, sb, sw};
/// use rv64::{Machine, Outcome, layout};
///
/// let mut machine = Machine::new(16 << 20, 1)?;
/// let mut p = Program::at(layout::RAM);
/// p.li(reg::T0, layout::UART);
/// for byte in *b"hi" {
///     p.li(reg::T1, byte.into());
///     p.put(sb(reg::T1, 0, reg::T0));
/// }
/// p.li(reg::T0, layout::FINISHER);
/// p.li(reg::T1, 0x5555);
/// p.put(sw(reg::T1, 0, reg::T0));
/// machine.load(0, &p.finish())?;
/// assert_eq!(machine.run(1000), Outcome::Finished(0));
/// assert_eq!(machine.board().uart.take_output(), b"hi");
/// # Ok::<(), rv64::MachineError>(())
/// ```
#[derive(Debug)]
pub struct Machine {
    memory: Arc<MemoryMap>,
    space: Arc<AddressSpace>,
    pub(super) ram: Arc<RamBlock>,
    pub(super) frame_buffer: Arc<RamBlock>,
    regions: [RegionId; 2],
    pub(super) cores: Vec<Core>,
    pub(super) board: Shared,
    /// Instructions since the last tick of the clock.
    pub(super) since_tick: u64,
}

impl Machine {
    /// A machine with `ram` bytes of RAM and so many harts, which start at its first byte.
    ///
    /// # Errors
    ///
    /// [`MachineError`]: memory cannot be had.
    pub fn new(ram: u64, harts: usize) -> Result<Self, MachineError> {
        let board = Board::new(harts);
        let lines: Vec<_> = (0..harts).map(|hart| board.clint.lines(hart).clone()).collect();
        let board = Shared::new(board);
        let ram = RamBlock::anonymous("ram", ram)?;
        let pixels = layout::WIDTH * layout::HEIGHT * layout::PIXEL;
        let page = ram.page_size().bytes();
        let frame_buffer = RamBlock::anonymous("vram", pixels.next_multiple_of(page))?;
        let memory = MemoryMap::new();
        let (root, regions) = memory.transaction(|map| {
            let root = map.container("system", 1 << 64)?;
            let regions = [map.ram("ram", ram.clone())?, map.ram("vram", frame_buffer.clone())?];
            map.add_subregion(root, layout::RAM, regions[0])?;
            map.add_subregion(root, layout::FRAME_BUFFER, regions[1])?;
            for (name, at, size, token) in [
                ("clint", layout::CLINT, CLINT_SIZE, Board::CLINT),
                ("uart", layout::UART, 8, Board::UART),
                ("finisher", layout::FINISHER, 4, Board::FINISHER),
            ] {
                let device = map.trap(name, size.into(), token)?;
                map.add_subregion(root, at, device)?;
            }
            Ok((root, regions))
        })?;
        let space = memory.address_space("memory", root)?;
        let code = Arc::new(CodePages::new(&ram)?);
        let core = |(lines, id)| Core {
            hart: Hart::with_lines(id, layout::RAM, lines),
            bus: TlbBus::new(&space, &code, board.clone()),
            waits: false,
        };
        let cores = lines.into_iter().zip(0..).map(core).collect();
        Ok(Self { memory, ram, frame_buffer, regions, cores, board, since_tick: 0, space })
    }

    /// Puts bytes into RAM, `offset` bytes from its start.
    ///
    /// # Errors
    ///
    /// [`MachineError::Ram`] if there is no such memory.
    pub fn load(&self, offset: u64, bytes: &[u8]) -> Result<(), MachineError> {
        Ok(self.ram.write(offset, bytes)?)
    }

    /// The map, for logs of its memory and for devices that access it on their own.
    pub fn memory(&self) -> &Arc<MemoryMap> {
        &self.memory
    }

    /// What harts see.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// RAM.
    pub fn ram(&self) -> &Arc<RamBlock> {
        &self.ram
    }

    /// The memory of the frame buffer.
    pub fn frame_buffer(&self) -> &Arc<RamBlock> {
        &self.frame_buffer
    }

    /// The regions of RAM and of the frame buffer.
    pub fn regions(&self) -> [RegionId; 2] {
        self.regions
    }

    /// A hart.
    ///
    /// # Panics
    ///
    /// If there is no such hart.
    pub fn hart(&self, number: usize) -> &Hart {
        &self.cores[number].hart
    }

    /// The devices, locked.
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock()
    }

    /// Runs all harts in turn on this thread, each for up to `steps` instructions. Where all of
    /// them wait for a timer the clock is set to that time.
    pub fn run(&mut self, steps: u64) -> Outcome {
        let mut left = steps;
        while left > 0 {
            if let Some(code) = self.board().finisher.code() {
                return Outcome::Finished(code);
            }
            if !self.cores.iter().any(Core::is_ready) {
                let Some(ticks) = self.board().clint.until_next() else { return Outcome::Idle };
                self.board().clint.advance(ticks);
                continue;
            }
            let slice = left.min(SLICE);
            self.take_turns(slice);
            left -= slice;
        }
        self.board().finisher.code().map_or(Outcome::Steps, Outcome::Finished)
    }

    /// As [`run`](Self::run), but for so many ticks of the clock: that of harts that wait passes
    /// without instructions. A guest that sleeps between its frames costs what it executes, and
    /// goes at the pace at which this is called.
    ///
    /// Where all harts wait and no timer is set, the clock has advanced all the same.
    pub fn run_for(&mut self, ticks: u64) -> Outcome {
        let mut left = ticks;
        while left > 0 {
            if let Some(code) = self.board().finisher.code() {
                return Outcome::Finished(code);
            }
            if self.cores.iter().any(Core::is_ready) {
                let instructions = left.saturating_mul(INSTRUCTIONS_A_TICK) - self.since_tick;
                left -= self.take_turns(instructions.min(SLICE));
                continue;
            }
            let mut board = self.board.lock();
            let next = board.clint.until_next();
            let passed = next.map_or(left, |next| next.min(left));
            board.clint.advance(passed);
            if next.is_none() {
                return Outcome::Idle;
            }
            left -= passed;
        }
        self.board().finisher.code().map_or(Outcome::Steps, Outcome::Finished)
    }

    /// Each hart that is ready executes up to `slice` instructions; returns the ticks that pass.
    fn take_turns(&mut self, slice: u64) -> u64 {
        for core in &mut self.cores {
            if core.is_ready() {
                core.run(slice);
            }
        }
        self.since_tick += slice;
        let ticks = self.since_tick / INSTRUCTIONS_A_TICK;
        self.since_tick %= INSTRUCTIONS_A_TICK;
        self.board().clint.advance(ticks);
        ticks
    }
}
