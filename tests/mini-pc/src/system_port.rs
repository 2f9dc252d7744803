//! System control port A of IBM's PS/2 (0x92): the fast way to reset and to address line 20.

use std::sync::atomic::{AtomicU8, Ordering};

use memory_region::MmioDevice;

use super::wires::ResetLine;
use migration_ram::{Device, DeviceError};

const RESET: u8 = 1;
const A20: u8 = 1 << 1;

/// The port. Address line 20 is never masked here: its bit is kept, and does nothing.
#[derive(Debug)]
pub struct SystemPort {
    value: AtomicU8,
    reset: ResetLine,
}

impl SystemPort {
    /// The port.
    pub const PORT: u64 = 0x92;

    /// A port that pulls `reset`.
    pub fn new(reset: ResetLine) -> Self {
        Self { value: AtomicU8::new(A20), reset }
    }
}

impl MmioDevice for SystemPort {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.value.load(Ordering::Relaxed).into()
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let [value, ..] = value.to_le_bytes();
        self.value.store(value & !RESET, Ordering::Relaxed);
        if value & RESET != 0 {
            self.reset.pull();
        }
    }
}

impl Device for SystemPort {
    fn name(&self) -> &str {
        "system port"
    }

    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(serde_json::to_vec(&self.value.load(Ordering::Relaxed))?)
    }

    fn restore(&self, _: u32, state: &[u8]) -> Result<(), DeviceError> {
        let value: u8 = serde_json::from_slice(state)?;
        self.value.store(value & !RESET, Ordering::Relaxed);
        Ok(())
    }
}
