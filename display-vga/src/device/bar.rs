//! The registers by MMIO, as in BAR 2 of QEMU's standard VGA
//! ("QEMU Standard VGA", `docs/specs/standard-vga`): the monitor's EDID from 0x000 on, the
//! ports 0x3C0 to 0x3DF at 0x400, and at 0x500 the VBE registers, two bytes each. Everything
//! else reads as all ones, also QEMU's byte order register, which is not implemented: pixels are
//! little-endian.

use std::ops::Range;
use std::sync::Arc;

use memory_region::{AccessSizes, MmioAccess, MmioDevice};

use crate::device::ports::{Ports, read_bytes};
use crate::device::vga::Vga;
use crate::registers::{ports, vbe};

const EDID: Range<u64> = 0..0x400;
const PORTS: Range<u64> = 0x400..0x420;
/// The port at the start of [`PORTS`].
const FIRST_PORT: u64 = 0x3c0;
const VBE: Range<u64> = 0x500..0x500 + 2 * (vbe::REGISTERS as u64 + 1);

/// BAR 2.
pub(crate) struct Bar(Arc<Vga>, Ports);

impl Bar {
    pub(crate) fn new(vga: &Arc<Vga>) -> Self {
        Self(vga.clone(), Ports(vga.clone()))
    }
}

/// The offset in [`Ports`] of the port at `offset` of the BAR.
fn port(offset: u64) -> u64 {
    offset - PORTS.start + (FIRST_PORT - u64::from(ports::FIRST))
}

fn vbe_register(offset: u64) -> u16 {
    u16::try_from((offset - VBE.start) / 2).unwrap_or(u16::MAX)
}

impl MmioDevice for Bar {
    fn read(&self, offset: u64, size: usize) -> u64 {
        if EDID.contains(&offset) {
            let edid = self.0.lock().edid;
            let byte = |at: u64| usize::try_from(at).ok().and_then(|at| edid.0.get(at)).copied();
            return read_bytes(offset, size, |at| byte(at).unwrap_or(0));
        }
        if PORTS.contains(&offset) {
            return self.1.read(port(offset), size);
        }
        let state = self.0.lock();
        read_bytes(offset, size, |at| {
            if !VBE.contains(&at) {
                return 0xff;
            }
            let value = state.registers.vbe.read(vbe_register(at), self.0.vram().len());
            value.to_le_bytes()[usize::from(at % 2 == 1)]
        })
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        if PORTS.contains(&offset) {
            self.1.write(port(offset), size, value);
        } else if VBE.contains(&offset) {
            // Only whole registers are written; of a doubleword the lower register first.
            let bytes = value.to_le_bytes();
            for (at, word) in (offset..).step_by(2).zip(bytes[..size].chunks_exact(2)) {
                let value = u16::from_le_bytes([word[0], word[1]]);
                self.0.write_vbe(Some(vbe_register(at)), value);
            }
        }
    }

    fn access(&self) -> MmioAccess {
        let valid = AccessSizes::aligned(1, 4);
        MmioAccess { valid, implemented: valid, ..MmioAccess::default() }
    }
}
