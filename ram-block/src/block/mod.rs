//! A piece of guest RAM: host memory, and the bitmaps that know of writes to it.
//!
//! - `error`: what is refused, or cannot be had
//! - `ram_block`: reading, writing, resizing and discarding
//! - `builder`: which memory a block is made of
//!
//! Stands on `dirty`, for the bitmaps, and on `sys`, for the memory.

pub(crate) mod builder;
pub(crate) mod error;
pub(crate) mod ram_block;
