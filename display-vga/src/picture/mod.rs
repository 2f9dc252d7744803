//! What is shown: pixels, characters, and what of them changed. It stands on nothing.
//!
//! - `surface`: a picture and its rectangles; `damage`: the areas of it that changed;
//! - `text_screen`: the characters of a text mode.

pub(crate) mod damage;
pub(crate) mod surface;
pub(crate) mod text_screen;
