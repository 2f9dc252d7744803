//! From video memory to a surface, and to the damage of what changed.
//!
//! It stands on `modes` for which bytes are which pixels, and on `picture` for where they go.
//!
//! - `painter`: draws a mode of any kind; `part`: which part of it;
//! - `text`, `planes`, `linear`: draw the kinds; `row_copy`: pixels that are copied as they are;
//! - `blinks`: what of a picture blinks.

pub(crate) mod blinks;
pub(crate) mod linear;
pub(crate) mod painter;
pub(crate) mod part;
mod planes;
mod row_copy;
mod text;
