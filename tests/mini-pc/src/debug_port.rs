//! The port to which firmware writes what it has to say to its developers.

use std::sync::{Mutex, PoisonError};

use memory_region::MmioDevice;

/// A port whose bytes go to the log, line by line: `RUST_LOG=firmware=debug` shows them.
#[derive(Debug, Default)]
pub struct DebugPort {
    line: Mutex<Vec<u8>>,
}

impl DebugPort {
    /// The port.
    pub const PORT: u64 = 0x402;
    /// Longer lines are broken.
    const LONGEST: usize = 1000;
}

impl MmioDevice for DebugPort {
    fn read(&self, _: u64, _: usize) -> u64 {
        0xe9 // somebody listens
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let [byte, ..] = value.to_le_bytes();
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if byte != b'\n' {
            line.push(byte);
        }
        if byte == b'\n' || line.len() == Self::LONGEST {
            log::debug!(target: "firmware", "{}", line.escape_ascii());
            line.clear();
        }
    }
}
