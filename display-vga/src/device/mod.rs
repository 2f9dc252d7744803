//! The device: locked registers beside video memory, and its places on the buses.
//!
//! It stands on `registers`, and on `draw` for a picture without a screen.
//!
//! - `vga`: the device; `regions`: its regions on a memory map;
//! - `ports`, `bar`: the buses' accesses: by ports, by the low window, by the PCI device's memory;
//! - `graphics_controller`: what the low window makes of bytes; `window`: where it is an alias of
//!   video memory instead;
//! - `edid`: what the monitor says of itself; `state`: the registers as bytes.

pub(crate) mod bar;
pub(crate) mod edid;
pub(crate) mod graphics_controller;
pub(crate) mod ports;
pub(crate) mod regions;
pub(crate) mod state;
pub(crate) mod vga;
pub(crate) mod window;
