//! Ends a machine with a code: SiFive's test finisher.
//!
//! Source: QEMU, `hw/misc/sifive_test.c`, whose numbers guests use.

use crate::devices::device::{Device, Reader};

/// What a store of 32 bits has in its lower half to end a machine; the upper half is a code.
const FAIL: u32 = 0x3333;
/// As well, with code 0.
const PASS: u32 = 0x5555;

/// The device.
#[derive(Debug, Default)]
pub struct Finisher {
    code: Option<u32>,
}

impl Finisher {
    /// The code with which the guest has ended the machine: 0 for success.
    pub fn code(&self) -> Option<u32> {
        self.code
    }
}

impl Device for Finisher {
    fn load(&mut self, _: u64, _: usize) -> u64 {
        0
    }

    fn store(&mut self, offset: u64, _: usize, value: u64) {
        let [low, high] = [value & 0xffff, value >> 16 & 0xffff];
        let code = match u32::try_from(low) {
            Ok(PASS) => 0,
            Ok(FAIL) => u32::try_from(high).unwrap_or(1),
            _ => return,
        };
        if offset == 0 {
            self.code = Some(code);
        }
    }

    fn save(&self, into: &mut Vec<u8>) {
        let code = self.code.map_or(u64::MAX, u64::from);
        into.extend(code.to_le_bytes());
    }

    fn restore(&mut self, from: &mut Reader<'_>) -> Option<()> {
        self.code = u32::try_from(from.number()?).ok();
        Some(())
    }
}
