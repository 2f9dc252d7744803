//! The registers of a VGA, and which mode they describe.
//!
//! It stands on `modes`, and knows no memory map, lock or clock.
//!
//! - `register_file`: all registers and their numbers, with `dac`, and `vbe` of the Bochs VBE
//!   extensions;
//! - `ports`: how the VGA's ports reach them;
//! - `decode`: from registers to a mode;
//! - `retrace`: where the beam is, and what blinks;
//! - `text_mode`: the registers in the text mode that a PC's firmware leaves behind.

pub(crate) mod dac;
pub(crate) mod decode;
pub(crate) mod ports;
pub(crate) mod register_file;
pub(crate) mod retrace;
pub(crate) mod text_mode;
pub(crate) mod vbe;
