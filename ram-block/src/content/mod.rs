//! The contents of a block: where it has data, which pages are zero, what differs from a copy.
//!
//! - `extents`: where there is data, as the kernel reports it
//! - `zero`: pages that are zero, and bytes that are made so
//! - `zero_scan`: whether memory is zero, at the speed at which it can be read
//! - `compare`: what differs between two pieces of memory
//!
//! Built on `block`, and on `sys` for what the kernel reports.

pub(crate) mod compare;
pub(crate) mod extents;
mod zero;
mod zero_scan;
