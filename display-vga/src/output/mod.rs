//! Outputs of a picture.

pub(crate) mod input;
#[cfg(feature = "png")]
pub(crate) mod png;
#[cfg(all(feature = "terminal", any(unix, windows)))]
pub(crate) mod terminal;
#[cfg(all(feature = "vnc", target_os = "linux"))]
pub(crate) mod vnc;
#[cfg(all(feature = "window", not(target_family = "wasm")))]
pub(crate) mod window;
