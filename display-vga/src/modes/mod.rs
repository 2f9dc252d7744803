//! Display modes: map bytes of video memory to pixels, independent of the registers.
//!
//! Uses `picture` only.
//!
//! - `mode`: a mode of any kind;
//! - `text`, `planes`, `linear`: the kinds: characters, planes of bits, packed pixels;
//! - `raster`: the addresses of scan lines in the VGA's own modes;
//! - `limits`: the limits of modes.

pub(crate) mod limits;
pub(crate) mod linear;
pub(crate) mod mode;
pub(crate) mod planes;
pub(crate) mod raster;
pub(crate) mod text;
