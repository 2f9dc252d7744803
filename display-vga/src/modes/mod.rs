//! Which bytes of video memory are which pixels, once the registers are understood.
//!
//! It stands on `picture` only: a mode knows no register.
//!
//! - `mode`: a mode of any kind;
//! - `text`, `planes`, `linear`: the kinds: characters, planes of bits, packed pixels;
//! - `raster`: how scan lines follow each other in the VGA's own modes;
//! - `limits`: what no mode exceeds.

pub(crate) mod limits;
pub(crate) mod linear;
pub(crate) mod mode;
pub(crate) mod planes;
pub(crate) mod raster;
pub(crate) mod text;
