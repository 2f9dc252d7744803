//! The encodings of rectangles.
//!
//! - `encoder`: rectangles as bytes, in the encoding and format that a viewer wants;
//! - `hextile`, `zrle`, `tight`: the encodings; `tiles`, `palette`, `zlib`: what they are made of.

pub(super) mod encoder;
mod hextile;
mod palette;
mod tight;
mod tiles;
mod zlib;
mod zrle;
