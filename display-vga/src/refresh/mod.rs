//! The refresh: a surface that is kept equal to what a device shows, and when to look.
//!
//! It stands on `device` for what is shown, and on `draw` for its pixels.
//!
//! - `screen`: from dirty pages to redrawn pixels; `refresh_timer`: when to refresh next.

pub(crate) mod refresh_timer;
pub(crate) mod screen;
