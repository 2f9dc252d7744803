//! Draws video memory into a surface, and collects the damage.
//!
//! Uses `modes` to map bytes to pixels, and `picture` for surfaces.
//!
//! - `painter`: draws a mode of any kind; `part`: which part of it;
//! - `text`, `planes`, `linear`: draw one kind each; `row_copy`: copies pixels of the surface's own
//!   format;
//! - `blinks`: whether the picture has a blinking cursor or text.

pub(crate) mod blinks;
pub(crate) mod linear;
pub(crate) mod painter;
pub(crate) mod part;
mod planes;
mod row_copy;
mod text;
