//! What a block holds: where it has data, what of it is zero, and what differs from a copy.
//!
//! - `extents`: where there is data, asked of the kernel
//! - `zero`: pages that are zero, and bytes that are made so
//! - `zero_scan`: whether memory is zero, at the speed at which it can be read
//! - `compare`: what differs between two pieces of memory
//!
//! Stands on `block`, and on `sys` for what the kernel knows.

pub(crate) mod compare;
pub(crate) mod extents;
mod zero;
mod zero_scan;
