//! Accesses by the buses, of any size: split into accesses of single registers and plane
//! bytes.

use std::sync::Arc;

use memory_region::MmioDevice;

use crate::device::vga::Vga;
use crate::registers::ports;

/// The bytes of an access, each with its offset.
fn bytes(offset: u64, size: usize, value: u64) -> impl Iterator<Item = (u64, u8)> {
    (offset..).zip(value.to_le_bytes()).take(size)
}

/// Reads `size` bytes one by one.
pub(crate) fn read_bytes(offset: u64, size: usize, mut read: impl FnMut(u64) -> u8) -> u64 {
    let mut value = [0xff; 8];
    for (offset, byte) in (offset..).zip(value.iter_mut().take(size)) {
        *byte = read(offset);
    }
    u64::from_le_bytes(value)
}

/// The VGA's own ports.
pub(crate) struct Ports(pub(crate) Arc<Vga>);

fn port(offset: u64) -> u16 {
    ports::FIRST.saturating_add(u16::try_from(offset).unwrap_or(u16::MAX))
}

impl MmioDevice for Ports {
    fn read(&self, offset: u64, size: usize) -> u64 {
        let now = self.0.now();
        let mut state = self.0.lock();
        read_bytes(offset, size, |offset| state.registers.read_port(port(offset), now))
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        self.0.change(|registers| {
            for (offset, byte) in bytes(offset, size, value) {
                registers.write_port(port(offset), byte);
            }
        });
    }
}

/// The ports of the VBE registers, which are 16 bits wide.
pub(crate) struct VbePorts(pub(crate) Arc<Vga>);

impl MmioDevice for VbePorts {
    fn read(&self, offset: u64, size: usize) -> u64 {
        let vbe = &self.0.lock().registers.vbe;
        match (offset, size) {
            (0, 2) => u64::from(vbe.index),
            (1 | 2, 2) => u64::from(vbe.read(vbe.index, self.0.vram().len())),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let [low, high, ..] = value.to_le_bytes();
        let value = u16::from_le_bytes([low, high]);
        match (offset, size) {
            (0, 2) => self.0.lock().registers.vbe.index = value,
            (1 | 2, 2) => self.0.write_vbe(None, value),
            _ => {}
        }
    }
}

/// The low window, where it is not an alias of video memory.
pub(crate) struct LowWindow(pub(crate) Arc<Vga>);

impl MmioDevice for LowWindow {
    fn read(&self, offset: u64, size: usize) -> u64 {
        let mut state = self.0.lock();
        read_bytes(offset, size, |offset| {
            let read = state.registers.read_window(self.0.vram(), offset);
            read.unwrap_or_else(|error| {
                log::error!("vga: {error}"); // the planes lie within video memory
                0xff
            })
        })
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let mut state = self.0.lock();
        for (offset, byte) in bytes(offset, size, value) {
            if let Err(error) = state.registers.write_window(self.0.vram(), offset, byte) {
                log::error!("vga: {error}");
            }
        }
    }
}
