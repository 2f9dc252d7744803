//! A hard disk on the primary IDE channel, by programmed I/O (ATA/ATAPI-6).
//!
//! Its sectors are a block of guest memory that no processor sees: they travel with a
//! migration like RAM. What the guest writes is not written to the file that they are from.

mod identify;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_region::{AccessSizes, MmioAccess, MmioDevice};
use ram_block::{PageSize, RamBlock};
use serde::{Deserialize, Serialize};

use super::wires::IrqLine;
use machines::demo::AnyError;
use migration_ram::{Device, DeviceError};

/// Bytes of a sector.
const SECTOR: usize = 512;
const SECTOR_U64: u64 = SECTOR as u64;
/// The most sectors: those of 28-bit addresses.
const MOST_SECTORS: u64 = 1 << 28;
/// The geometry that old programs are told.
const HEADS: u64 = 16;
const SECTORS_PER_TRACK: u64 = 63;

// The status register.
const READY: u8 = 1 << 6;
const SEEK_COMPLETE: u8 = 1 << 4;
const DATA_REQUEST: u8 = 1 << 3;
const FAILED: u8 = 1;
const AT_REST: u8 = READY | SEEK_COMPLETE;
// The error register.
const ABORTED: u8 = 1 << 2;
const NOT_FOUND: u8 = 1 << 4;
// The device register.
const LBA: u8 = 1 << 6;
const SECOND_DRIVE: u8 = 1 << 4;
// The device control register.
const NO_INTERRUPTS: u8 = 1 << 1;
const RESET: u8 = 1 << 2;
const HIGH_BYTES: u8 = 1 << 7;

/// What goes through the data port.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Transfer {
    None,
    /// Sectors are read; so many are left after this one.
    Read {
        next: u64,
        left: u32,
    },
    /// Sectors are written; so many are left with this one.
    Write {
        next: u64,
        left: u32,
    },
    /// The disk's description.
    Identify,
}

#[derive(Clone, Serialize, Deserialize)]
struct State {
    /// Sector count and the three bytes of the address: the last byte written to each, and
    /// the one before, which is the higher byte of commands with 48-bit addresses.
    task: [[u8; 2]; 4],
    device: u8,
    status: u8,
    error: u8,
    control: u8,
    transfer: Transfer,
    /// The sector in the data port, and how much of it has gone through.
    buffer: Vec<u8>,
    at: usize,
}

impl Default for State {
    fn default() -> Self {
        // What is in the registers after a reset says: a disk (ATA/ATAPI-6, section 9.12).
        let task = [[1, 0], [1, 0], [0, 0], [0, 0]];
        Self {
            task,
            device: 0,
            status: AT_REST,
            error: 1,
            control: 0,
            transfer: Transfer::None,
            buffer: vec![0; SECTOR],
            at: 0,
        }
    }
}

/// The disk.
pub struct Disk {
    /// The sectors, and zeros up to a whole page.
    content: Arc<RamBlock>,
    sectors: u64,
    state: Mutex<State>,
    irq: IrqLine,
}

impl Disk {
    /// The first of its ports, of eight.
    pub const PORT: u64 = 0x1f0;
    /// How many they are.
    pub const PORTS: u128 = 8;
    /// The port of its control register.
    pub const CONTROL_PORT: u64 = 0x3f6;
    /// Its interrupt.
    pub const IRQ: u32 = 14;

    /// A disk with this content, of which the last sector may be short.
    ///
    /// # Errors
    ///
    /// If it is empty, larger than 128 GiB, or there is no memory for it.
    pub fn new(image: &[u8], irq: IrqLine) -> Result<Arc<Self>, AnyError> {
        let sectors = (image.len() as u64).div_ceil(SECTOR_U64);
        if sectors == 0 || sectors >= MOST_SECTORS {
            return Err(format!("A disk of {} bytes cannot be", image.len()).into());
        }
        let len = (sectors * SECTOR_U64).next_multiple_of(PageSize::host().bytes());
        let content = RamBlock::anonymous("pc.disk", len)?;
        content.write(0, image)?;
        Ok(Arc::new(Self { content, sectors, state: Mutex::default(), irq }))
    }

    /// Its content, to be made a region of the map so that it travels with a migration.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.content
    }

    /// The device at its control port.
    pub fn control(self: &Arc<Self>) -> Arc<dyn MmioDevice> {
        Arc::new(Control(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self, state: &State) {
        self.irq.set(state.control & NO_INTERRUPTS == 0);
    }

    fn finish(&self, state: &mut State) {
        (state.status, state.transfer) = (AT_REST, Transfer::None);
        self.interrupt(state);
    }

    fn fail(&self, state: &mut State, error: u8) {
        (state.status, state.transfer, state.error) = (AT_REST | FAILED, Transfer::None, error);
        self.interrupt(state);
    }

    /// A sector's worth of data is to go through the data port.
    fn offer(&self, state: &mut State, transfer: Transfer) {
        (state.transfer, state.at, state.status) = (transfer, 0, AT_REST | DATA_REQUEST);
    }

    /// Puts sector `next` into the data port.
    fn read_sector(&self, state: &mut State, next: u64, left: u32) {
        // The range was looked at when the command came.
        match self.content.read(next * SECTOR_U64, &mut state.buffer) {
            Ok(()) => {
                self.offer(state, Transfer::Read { next: next + 1, left });
                self.interrupt(state);
            }
            Err(_) => self.fail(state, NOT_FOUND),
        }
    }

    /// All of the sector has gone through the data port.
    fn advance(&self, state: &mut State) {
        match state.transfer {
            Transfer::Read { next, left } if left > 0 => self.read_sector(state, next, left - 1),
            Transfer::Read { .. } | Transfer::Identify => {
                (state.status, state.transfer) = (AT_REST, Transfer::None);
            }
            Transfer::Write { next, left } => {
                if self.content.write(next * SECTOR_U64, &state.buffer).is_err() {
                    self.fail(state, NOT_FOUND);
                } else if left > 1 {
                    self.offer(state, Transfer::Write { next: next + 1, left: left - 1 });
                    self.interrupt(state);
                } else {
                    self.finish(state);
                }
            }
            Transfer::None => {}
        }
    }

    fn command(&self, command: u8) {
        let mut state = self.lock();
        let state = &mut *state;
        if state.device & SECOND_DRIVE != 0 {
            return;
        }
        self.irq.set(false);
        (state.error, state.transfer) = (0, Transfer::None);
        match command {
            0x20 | 0x21 | 0x24 | 0x30 | 0x31 | 0x34 | 0x40 | 0x41 | 0x42 => {
                let is_long = matches!(command, 0x24 | 0x34 | 0x42);
                let Some((first, count)) = self.range(state, is_long) else {
                    return self.fail(state, NOT_FOUND);
                };
                match command {
                    0x20..=0x24 => self.read_sector(state, first, count - 1),
                    0x30..=0x34 => self.offer(state, Transfer::Write { next: first, left: count }),
                    _ => self.finish(state), // a verification
                }
            }
            0xec => {
                state.buffer = identify::description(self.sectors);
                self.offer(state, Transfer::Identify);
                self.interrupt(state);
            }
            0x90 => {
                // The diagnosis: passed, and that this is a disk.
                *state = State { control: state.control, ..State::default() };
                self.interrupt(state);
            }
            // Recalibrate, seek, set the geometry, flush the cache, go to sleep and wake up,
            // set features: there is nothing to do.
            0x10 | 0x70 | 0x91 | 0xe0..=0xe3 | 0xe7 | 0xea | 0xef => self.finish(state),
            0xe5 => {
                state.task[0] = [0xff, 0]; // the disk turns
                self.finish(state);
            }
            _ => self.fail(state, ABORTED),
        }
    }

    /// The sectors that the registers name; `None` if the disk has not got all of them.
    fn range(&self, state: &State, is_long: bool) -> Option<(u64, u32)> {
        let [count, low, middle, high] = state.task;
        let byte = |registers: [u8; 2], previous: bool| u64::from(registers[usize::from(previous)]);
        let address = |previous| {
            byte(low, previous) | byte(middle, previous) << 8 | byte(high, previous) << 16
        };
        let count_byte = |previous| u32::try_from(byte(count, previous)).unwrap_or(0);
        let head = u64::from(state.device & 0xf);
        let (first, count, all) = if is_long {
            (
                address(false) | address(true) << 24,
                count_byte(false) | count_byte(true) << 8,
                0x1_0000,
            )
        } else if state.device & LBA != 0 {
            (address(false) | head << 24, count_byte(false), 0x100)
        } else {
            let cylinder = byte(middle, false) | byte(high, false) << 8;
            let sector = byte(low, false).checked_sub(1)?;
            ((cylinder * HEADS + head) * SECTORS_PER_TRACK + sector, count_byte(false), 0x100)
        };
        let count = if count == 0 { all } else { count };
        (first + u64::from(count) <= self.sectors).then_some((first, count))
    }

    fn read_data(&self, size: usize) -> u64 {
        let mut state = self.lock();
        if !matches!(state.transfer, Transfer::Read { .. } | Transfer::Identify) {
            return u64::MAX;
        }
        let mut value = [0xff; 8];
        let from = state.at;
        let to = (from + size.min(8)).min(SECTOR);
        value[..to - from].copy_from_slice(&state.buffer[from..to]);
        state.at = to;
        if to == SECTOR {
            self.advance(&mut state);
        }
        u64::from_le_bytes(value)
    }

    fn write_data(&self, size: usize, value: u64) {
        let mut state = self.lock();
        if !matches!(state.transfer, Transfer::Write { .. }) {
            return;
        }
        let from = state.at;
        let to = (from + size.min(8)).min(SECTOR);
        state.buffer[from..to].copy_from_slice(&value.to_le_bytes()[..to - from]);
        state.at = to;
        if to == SECTOR {
            self.advance(&mut state);
        }
    }

    fn alternate_status(&self) -> u8 {
        let state = self.lock();
        // A drive that is not there drives no line; the channel pulls them low.
        if state.device & SECOND_DRIVE != 0 { 0 } else { state.status }
    }
}

impl MmioDevice for Disk {
    fn read(&self, offset: u64, size: usize) -> u64 {
        if offset == 0 {
            return self.read_data(size);
        }
        let state = self.lock();
        let previous = usize::from(state.control & HIGH_BYTES != 0);
        let value = match offset {
            _ if state.device & SECOND_DRIVE != 0 && offset != 6 => 0,
            1 => state.error,
            2..=5 => state.task[usize::try_from(offset - 2).unwrap_or(0)][previous],
            6 => state.device | 0xa0,
            _ => {
                self.irq.set(false);
                state.status
            }
        };
        value.into()
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let [byte, ..] = value.to_le_bytes();
        match offset {
            0 => self.write_data(size, value),
            2..=5 => {
                let mut state = self.lock();
                let register = &mut state.task[usize::try_from(offset - 2).unwrap_or(0)];
                *register = [byte, register[0]];
                state.control &= !HIGH_BYTES;
            }
            6 => self.lock().device = byte,
            7 => self.command(byte),
            _ => {} // features
        }
    }

    fn access(&self) -> MmioAccess {
        // The data port takes words and pairs of them; the others are bytes.
        let sizes = AccessSizes { min: 1, max: 4, unaligned: true };
        MmioAccess { valid: sizes, implemented: sizes, ..MmioAccess::default() }
    }
}

struct Control(Arc<Disk>);

impl MmioDevice for Control {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.0.alternate_status().into()
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        let mut state = self.0.lock();
        if value & RESET != 0 {
            *state = State::default();
            self.0.irq.set(false);
        }
        state.control = value;
    }
}

impl Device for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&*self.lock())?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let saved: State = serde_json::from_slice(state)?;
        if saved.buffer.len() != SECTOR || saved.at >= SECTOR {
            return Err("A sector has 512 bytes".into());
        }
        let end = match saved.transfer {
            Transfer::Read { next, left } | Transfer::Write { next, left } => {
                next.checked_add(left.into())
            }
            Transfer::None | Transfer::Identify => Some(0),
        };
        if end.is_none_or(|end| end > self.sectors) {
            return Err("The disk has not that many sectors".into());
        }
        *self.lock() = saved;
        Ok(())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("sectors", &self.sectors).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
