//! The clock and the interrupts from one hart to another: SiFive's core-local interruptor.
//!
//! Source: SiFive FU540-C000 manual, chapter "Core Local Interruptor (CLINT)".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::device::{Device, Reader};
use crate::hart::lines::{Interrupt, Lines};

/// Four bytes for each hart: its software interrupt.
const MSIP: u64 = 0;
/// Eight bytes for each hart: from which time on its timer interrupt is raised.
const MTIMECMP: u64 = 0x4000;
/// The time.
const MTIME: u64 = 0xbff8;
/// What drivers write there for no interrupt at all: a time that is never reached.
const NO_TIMER: u64 = u64::MAX;
/// Bytes of the registers.
pub const CLINT_SIZE: u64 = 0x1_0000;
/// Ticks of the clock in a second, as QEMU's `virt` machine has them.
pub const TICKS_A_SECOND: u64 = 10_000_000;

/// The device. Times are in ticks of the clock.
#[derive(Debug)]
pub struct Clint {
    time: Arc<AtomicU64>,
    harts: Vec<Hart>,
}

#[derive(Debug)]
struct Hart {
    lines: Arc<Lines>,
    software: bool,
    compare: u64,
}

impl Clint {
    /// A clock for so many harts, at 0; no timer is set.
    pub fn new(harts: usize) -> Self {
        let time = Arc::default();
        let hart =
            |_| Hart { lines: Arc::new(Lines::new(&time)), software: false, compare: NO_TIMER };
        let harts = (0..harts).map(hart).collect();
        Self { time, harts }
    }

    /// The inputs of a hart.
    ///
    /// # Panics
    ///
    /// If there is no such hart.
    pub fn lines(&self, hart: usize) -> &Arc<Lines> {
        &self.harts[hart].lines
    }

    /// `mtime`
    pub fn time(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }

    /// Lets so many ticks pass.
    pub fn advance(&mut self, ticks: u64) {
        self.set_time(self.time().wrapping_add(ticks));
    }

    /// In how many ticks the next timer is due that is not due yet.
    pub fn until_next(&self) -> Option<u64> {
        let time = self.time();
        let set = self.harts.iter().map(|hart| hart.compare).filter(|compare| *compare != NO_TIMER);
        set.filter_map(|compare| compare.checked_sub(time)).filter(|ticks| *ticks > 0).min()
    }

    fn set_time(&mut self, time: u64) {
        self.time.store(time, Ordering::Relaxed);
        self.harts.iter().for_each(|hart| hart.update(time));
    }

    /// The register with byte `offset`, where it begins, and its size.
    fn register(&mut self, offset: u64) -> Option<(Register, u64, usize)> {
        let hart = |from: u64, size: u64| usize::try_from((offset - from) / size).ok();
        let (register, size) = match offset {
            MTIME.. => (Register::Time, 8),
            MTIMECMP.. => (Register::Compare(hart(MTIMECMP, 8)?), 8),
            _ => (Register::Software(hart(MSIP, 4)?), 4),
        };
        Some((register, offset % size, usize::try_from(size).ok()?))
    }

    fn get(&self, register: Register) -> u64 {
        match register {
            Register::Time => self.time(),
            Register::Compare(hart) => self.harts.get(hart).map_or(0, |hart| hart.compare),
            Register::Software(hart) => self.harts.get(hart).map_or(0, |hart| hart.software.into()),
        }
    }

    fn set(&mut self, register: Register, value: u64) {
        let time = self.time();
        let hart = match register {
            Register::Time => return self.set_time(value),
            Register::Compare(hart) | Register::Software(hart) => self.harts.get_mut(hart),
        };
        let Some(hart) = hart else { return };
        match register {
            Register::Software(_) => hart.software = value & 1 != 0,
            _ => hart.compare = value,
        }
        hart.update(time);
    }
}

impl Hart {
    fn update(&self, time: u64) {
        self.lines.set(Interrupt::Timer, time >= self.compare);
        self.lines.set(Interrupt::Software, self.software);
    }
}

#[derive(Clone, Copy)]
enum Register {
    Time,
    Compare(usize),
    Software(usize),
}

impl Device for Clint {
    fn load(&mut self, offset: u64, _: usize) -> u64 {
        let Some((register, at, _)) = self.register(offset) else { return 0 };
        self.get(register) >> (8 * at)
    }

    fn store(&mut self, offset: u64, size: usize, value: u64) {
        let Some((register, at, whole)) = self.register(offset) else { return };
        // Half of a register may be written alone.
        let new = if size >= whole {
            value
        } else {
            let mask = ((1 << (8 * size)) - 1) << (8 * at);
            self.get(register) & !mask | value << (8 * at) & mask
        };
        self.set(register, new);
    }

    fn save(&self, into: &mut Vec<u8>) {
        into.extend(self.time().to_le_bytes());
        for hart in &self.harts {
            into.extend(hart.compare.to_le_bytes());
            into.extend(u64::from(hart.software).to_le_bytes());
        }
    }

    fn restore(&mut self, from: &mut Reader<'_>) -> Option<()> {
        let time = from.number()?;
        let state = self.harts.iter().map(|_| Some((from.number()?, from.number()?)));
        let state: Vec<_> = state.collect::<Option<_>>()?;
        for (hart, (compare, software)) in self.harts.iter_mut().zip(state) {
            (hart.compare, hart.software) = (compare, software != 0);
        }
        self.set_time(time);
        Some(())
    }
}
