//! The real-time clock with its battery-backed memory (MC146818), in which firmware finds
//! how much RAM there is.
//!
//! The time is the host's, plus what the guest has set it off by. Alarms and the interrupts
//! for updates do not come; the periodic interrupt does, at the rate that the guest chose.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use memory_region::{AccessSizes, MmioAccess, MmioDevice};
use serde::{Deserialize, Serialize};

use super::wires::IrqLine;
use migration_ram::{Device, DeviceError};

// Registers (MC146818 data sheet); those of the time are up to `YEAR`.
const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const A: usize = 0x0a;
const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
/// The century, where IBM put it.
const CENTURY: usize = 0x32;

const BYTES: usize = 128;
/// A: the usual time base, and 1024 interrupts a second.
const A_AT_RESET: u8 = 0x26;
// Bits of B.
const SET: u8 = 1 << 7;
const PERIODIC: u8 = 1 << 6;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Hours of the afternoon, where there are twelve.
const PM: u8 = 1 << 7;
/// C: an interrupt, of the periodic kind.
const INTERRUPT: u8 = 1 << 7 | PERIODIC;
/// D: the battery is good.
const VALID: u8 = 1 << 7;

/// Where firmware finds the amounts of RAM and of disks. (In the registers that IBM left
/// free, as Bochs and QEMU assign them; the numbers are little-endian.)
mod place {
    pub(super) const FLOPPIES: usize = 0x10;
    pub(super) const EQUIPMENT: usize = 0x14;
    pub(super) const BASE_KIB: usize = 0x15;
    pub(super) const EXTENDED_KIB: [usize; 2] = [0x17, 0x30];
    pub(super) const ABOVE_16_MIB: usize = 0x34;
    pub(super) const BOOT_ORDER: usize = 0x3d;
    pub(super) const ABOVE_4_GIB: usize = 0x5b;
}

struct State {
    index: u8,
    memory: [u8; BYTES],
    /// What the guest's clock is ahead of the host's, in seconds.
    ahead: i64,
    /// When register C last told of a periodic interrupt.
    told: Instant,
}

/// The clock.
pub struct Rtc {
    state: Mutex<State>,
    irq: IrqLine,
    ticker: OnceLock<Thread>,
}

impl Rtc {
    /// The first of its two ports.
    pub const PORT: u64 = 0x70;
    /// How many there are.
    pub const PORTS: u128 = 2;
    /// Its interrupt.
    pub const IRQ: u32 = 8;

    /// A clock of a machine with this many bytes of RAM below and above 4 GiB, which boots
    /// from the first hard disk.
    pub fn new(low_ram: u64, high_ram: u64, irq: IrqLine) -> Arc<Self> {
        let mut memory = [0; BYTES];
        memory[A] = A_AT_RESET;
        memory[B] = HOURS_24;
        memory[place::FLOPPIES] = 0;
        memory[place::EQUIPMENT] = 0x06; // a mathematical coprocessor, and a mouse port
        memory[place::BOOT_ORDER] = 0x02; // a hard disk, then nothing
        let mut word = |at: usize, value: u64| {
            let value = u16::try_from(value).unwrap_or(u16::MAX);
            memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        word(place::BASE_KIB, 640);
        for at in place::EXTENDED_KIB {
            word(at, low_ram.saturating_sub(1 << 20) >> 10);
        }
        word(place::ABOVE_16_MIB, low_ram.saturating_sub(16 << 20) >> 16);
        memory[place::ABOVE_4_GIB..][..3].copy_from_slice(&(high_ram >> 16).to_le_bytes()[..3]);
        let state = State { index: 0, memory, ahead: 0, told: Instant::now() };
        Arc::new(Self { state: Mutex::new(state), irq, ticker: OnceLock::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes this thread, if it is parked, when the guest changes the periodic interrupt.
    pub fn wakes(&self, ticker: Thread) {
        let _ = self.ticker.set(ticker);
    }

    /// Raises the periodic interrupt if it is due. Returns when to call again, if the guest
    /// has switched it on: it is its owner that has a clock.
    pub fn tick(&self) -> Option<Duration> {
        let mut state = self.lock();
        let period = state.period()?;
        let since = state.told.elapsed();
        if since < period {
            return Some(period - since);
        }
        let is_new = state.memory[C] & INTERRUPT == 0;
        state.memory[C] |= INTERRUPT;
        state.told = Instant::now();
        drop(state);
        if is_new {
            self.irq.set(true);
        }
        Some(period)
    }
}

impl State {
    /// From one periodic interrupt to the next, if they are on.
    fn period(&self) -> Option<Duration> {
        let rate = u32::from(self.memory[A] & 0xf);
        if self.memory[B] & PERIODIC == 0 || rate == 0 {
            return None;
        }
        // Rates 1 and 2 are those of 8 and 9; the others halve 65,536 Hz each.
        let rate = if rate < 3 { rate + 7 } else { rate };
        Some(Duration::from_secs(1) * (1 << (rate - 1)) / 32_768)
    }

    /// The guest's time.
    fn now(&self) -> DateTime {
        let now = Timestamp::now().checked_add(Span::new().seconds(self.ahead));
        TimeZone::UTC.to_datetime(now.unwrap_or(Timestamp::UNIX_EPOCH))
    }

    fn encode(&self, value: i8) -> u8 {
        let value = value.unsigned_abs();
        if self.memory[B] & BINARY != 0 { value } else { value / 10 * 16 + value % 10 }
    }

    fn decode(&self, value: u8) -> i8 {
        let number = if self.memory[B] & BINARY != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10).saturating_add(value & 0xf)
        };
        i8::try_from(number).unwrap_or(i8::MAX)
    }

    /// Puts the time into its registers, unless the guest is setting it.
    fn show(&mut self) {
        if self.memory[B] & SET != 0 {
            return;
        }
        let now = self.now();
        let hour = match (self.memory[B] & HOURS_24 != 0, now.hour()) {
            (true, hour) => self.encode(hour),
            (false, hour) => {
                let half = if hour >= 12 { PM } else { 0 };
                self.encode((hour + 11) % 12 + 1) | half
            }
        };
        let hundreds = |year: i16| i8::try_from(year).unwrap_or(0);
        for (register, value) in [
            (SECONDS, self.encode(now.second())),
            (MINUTES, self.encode(now.minute())),
            (HOURS, hour),
            (WEEKDAY, self.encode(now.weekday().to_sunday_one_offset())),
            (DAY, self.encode(now.day())),
            (MONTH, self.encode(now.month())),
            (YEAR, self.encode(hundreds(now.year() % 100))),
            (CENTURY, self.encode(hundreds(now.year() / 100))),
        ] {
            self.memory[register] = value;
        }
    }

    /// Takes the time that the registers say, if there is such a time.
    fn take(&mut self) {
        let field = |register: usize| self.decode(self.memory[register]);
        let hour = match (self.memory[B] & HOURS_24 != 0, self.memory[HOURS]) {
            (true, hour) => self.decode(hour),
            (false, hour) => {
                let half = if hour & PM != 0 { 12 } else { 0 };
                (self.decode(hour & !PM) % 12).saturating_add(half)
            }
        };
        let year = i16::from(field(CENTURY)) * 100 + i16::from(field(YEAR));
        let time =
            DateTime::new(year, field(MONTH), field(DAY), hour, field(MINUTES), field(SECONDS), 0);
        let set = time.and_then(|time| TimeZone::UTC.to_timestamp(time));
        match set {
            Ok(set) => self.ahead = set.as_second().saturating_sub(Timestamp::now().as_second()),
            Err(error) => log::debug!("rtc: no such time: {error}"),
        }
    }

    fn write(&mut self, index: usize, value: u8) {
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                self.show();
                self.memory[index] = value;
                if self.memory[B] & SET == 0 {
                    self.take();
                }
            }
            A => self.memory[A] = value & 0x7f,
            B => {
                self.show();
                let was_set = self.memory[B] & SET != 0;
                let format_changes = (self.memory[B] ^ value) & (BINARY | HOURS_24) != 0;
                if value & PERIODIC & !self.memory[B] != 0 {
                    self.told = Instant::now();
                }
                self.memory[B] = value;
                if was_set && value & SET == 0 && !format_changes {
                    self.take();
                }
            }
            C | D => {}
            _ => self.memory[index] = value,
        }
    }
}

impl MmioDevice for Rtc {
    fn read(&self, offset: u64, _: usize) -> u64 {
        let mut state = self.lock();
        if offset == 0 {
            return 0xff;
        }
        let index = usize::from(state.index);
        let value = match index {
            C => {
                // Reading it ends the interrupt.
                self.irq.set(false);
                std::mem::take(&mut state.memory[C])
            }
            D => VALID,
            _ => {
                state.show();
                state.memory[index]
            }
        };
        value.into()
    }

    fn write(&self, offset: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        let mut state = self.lock();
        if offset == 0 {
            state.index = value & 0x7f; // the highest bit masks the NMI, of which there is none
        } else {
            let index = usize::from(state.index);
            state.write(index, value);
            if let (A | B, Some(ticker)) = (index, self.ticker.get()) {
                ticker.unpark();
            }
        }
    }

    fn access(&self) -> MmioAccess {
        let implemented = AccessSizes::aligned(1, 1);
        MmioAccess { implemented, ..MmioAccess::default() }
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    index: u8,
    memory: Vec<u8>,
    ahead: i64,
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        let state = self.lock();
        let saved = Saved { index: state.index, memory: state.memory.to_vec(), ahead: state.ahead };
        Ok(serde_json::to_vec(&saved)?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let Saved { index, memory, ahead } = serde_json::from_slice(state)?;
        let memory = memory.as_slice().try_into().map_err(|_| "The clock has 128 bytes")?;
        // What can be set, from year 0 to 9999.
        if ahead.unsigned_abs() > 10_000 * 366 * 86_400 {
            return Err("No clock is that far ahead".into());
        }
        *self.lock() = State { index: index & 0x7f, memory, ahead, told: Instant::now() };
        // The periodic interrupt may be another.
        self.ticker.get().map(Thread::unpark);
        Ok(())
    }
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rtc")
    }
}

#[cfg(test)]
mod tests;
