//! The encodings of rectangles.
//!
//! - `encoder`: encodes rectangles in a viewer's encoding and pixel format;
//! - `hextile`, `zrle`, `tight`: the encodings; `tiles`, `palette`, `zlib`: their common parts.

pub(super) mod encoder;
mod hextile;
mod palette;
mod tight;
mod tiles;
mod zlib;
mod zrle;
