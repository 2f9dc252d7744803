//! Devices: plain structs with registers.
//!
//! - `device`: what a machine asks of them, and how their states are read
//! - `uart`, `clint`, `finisher`: a serial port, the clock, and the way out
//!
//! Built on the inputs of `hart`.

pub(crate) mod clint;
pub(crate) mod device;
pub(crate) mod finisher;
pub(crate) mod uart;
