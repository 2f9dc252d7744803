//! The registers of a VGA, and the mode that they describe.
//!
//! Uses `modes`; independent of the memory map, locks and clocks.
//!
//! - `register_file`: all registers and their numbers, with `dac`, and `vbe` of the Bochs VBE
//!   extensions;
//! - `ports`: accesses by the VGA's I/O ports;
//! - `decode`: decodes the registers into a mode;
//! - `retrace`: the frame timing, retrace bits and blinking;
//! - `text_mode`: the registers of the text mode that a PC's firmware sets.

pub(crate) mod dac;
pub(crate) mod decode;
pub(crate) mod ports;
pub(crate) mod register_file;
pub(crate) mod retrace;
pub(crate) mod text_mode;
pub(crate) mod vbe;
