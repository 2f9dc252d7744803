//! A piece of guest RAM: host memory and its dirty bitmaps.
//!
//! - `error`: the errors of a block
//! - `ram_block`: reading, writing, resizing and discarding
//! - `builder`: choosing a block's memory
//!
//! Built on `dirty`, for the bitmaps, and on `sys`, for the memory.

pub(crate) mod builder;
pub(crate) mod error;
pub(crate) mod ram_block;
