//! The refresh: updates a surface to a device's picture, and schedules the next refresh.
//!
//! Uses `device` for the mode, and `draw` for the pixels.
//!
//! - `screen`: redraws the pixels of dirty pages; `refresh_timer`: when to refresh next.

pub(crate) mod refresh_timer;
pub(crate) mod screen;
