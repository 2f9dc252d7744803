//! Outputs of a picture.

pub(crate) mod input;
#[cfg(feature = "png")]
pub(crate) mod png;
#[cfg(feature = "terminal")]
pub(crate) mod terminal;
#[cfg(feature = "vnc")]
pub(crate) mod vnc;
#[cfg(feature = "window")]
pub(crate) mod window;
