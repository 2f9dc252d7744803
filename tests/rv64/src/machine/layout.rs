//! Where things are: as in QEMU's `virt` machine, so that its bare-metal programs run here.
//!
//! Source: QEMU, `hw/riscv/virt.c`, `virt_memmap`. The frame buffer is in a place that is free
//! there.

/// The test finisher: 32 bits.
pub const FINISHER: u64 = 0x10_0000;
/// The core-local interruptor.
pub const CLINT: u64 = 0x200_0000;
/// The serial port.
pub const UART: u64 = 0x1000_0000;
/// The frame buffer, memory of [`WIDTH`] by [`HEIGHT`] pixels.
pub const FRAME_BUFFER: u64 = 0x5000_0000;
/// RAM; harts start at its first byte.
pub const RAM: u64 = 0x8000_0000;

/// Pixels of a line.
pub const WIDTH: u64 = 320;
/// Lines of the picture.
pub const HEIGHT: u64 = 200;
/// Bytes of a pixel: blue, green, red, and one that is not shown.
pub const PIXEL: u64 = 4;
