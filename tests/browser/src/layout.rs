//! Where the VGA is, and how long a frame takes.
//!
//! The rest is where `rv64::layout` has it. QEMU's `virt` machine has the memory of PCI devices at
//! 1 GiB: there stand the BARs of its standard VGA.

/// Video memory: BAR 0.
pub const VRAM: u64 = 0x4000_0000;
/// Bytes of video memory.
pub const VRAM_BYTES: u64 = 2 << 20;
/// The registers: BAR 2.
pub const REGISTERS: u64 = 0x4100_0000;
/// Bytes of RAM.
pub const RAM_BYTES: u64 = 1 << 20;

/// Ticks of the clock of a frame of the guest: 16 ms.
pub const FRAME: u64 = rv64::TICKS_A_SECOND / 1000 * 16;
