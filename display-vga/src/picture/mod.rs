//! Pictures: pixels, characters, and damage. Uses no other module.
//!
//! - `surface`: a picture and its rectangles; `damage`: the areas of it that changed;
//! - `text_screen`: the characters of a text mode.

pub(crate) mod damage;
pub(crate) mod surface;
pub(crate) mod text_screen;
