//! The device: video memory, locked registers, and their regions on the buses.
//!
//! Uses `registers`, and `draw` for screenshots.
//!
//! - `vga`: the device; `regions`: its regions on a memory map;
//! - `ports`, `bar`: accesses by ports, by the low window, and by the PCI device's MMIO BAR;
//! - `graphics_controller`: accesses to the planes by the low window; `window`: maps the low
//!   window as an alias of video memory in modes that allow it;
//! - `edid`: the monitor's EDID; `state`: saves and restores the registers.

pub(crate) mod bar;
pub(crate) mod edid;
pub(crate) mod graphics_controller;
pub(crate) mod ports;
pub(crate) mod regions;
pub(crate) mod state;
pub(crate) mod vga;
pub(crate) mod window;
