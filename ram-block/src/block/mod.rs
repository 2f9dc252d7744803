//! A piece of guest RAM: host memory and its dirty bitmaps.
//!
//! - `error`: the errors of a block
//! - `ram_block`: reading, writing, resizing and discarding
//! - `scalar`, `ram_page`: a page for many accesses of one size, as a software TLB makes them
//! - `ram_slice`: vm-memory's slices of a block
//! - `builder`: choosing a block's memory
//!
//! Built on `dirty`, for the bitmaps, and on `sys`, for the memory.

pub(crate) mod builder;
pub(crate) mod error;
pub(crate) mod ram_block;
pub(crate) mod ram_page;
#[cfg(feature = "vm-memory")]
pub(crate) mod ram_slice;
pub(crate) mod scalar;
