//! Checkpoints of a machine in memory: to go back to, as often as wanted.
//!
//! From the bottom up:
//!
//! - `error`, `stats`: why one cannot be had, and what it costs
//! - `store`: contents of pages, each kept once
//! - `tree`: which checkpoints there are, and what differs between them
//! - `image`: a block's memory at the current checkpoint
//! - `memory`: all RAM at the current checkpoint, and what was written since
//! - `checkpoints`: the checkpoints of a machine, with its devices
//! - `rewind`: the way back and forth along the last ones
//! - `epochs`: what was written from one moment to the next, for any other purpose
//!
//! # Copied, not protected
//!
//! To put a page of 4 KiB back is a copy of less than a microsecond. What the host could do instead
//! costs more for a page that is written again and again: to give the page back and fault it in
//! anew, or to write-protect it and take a fault at the next write, for which the log has paid
//! already. So a reset copies, and a checkpoint of a running machine copies in rounds, as a
//! migration does.

pub(crate) mod checkpoints;
pub(crate) mod epochs;
pub(crate) mod error;
mod image;
mod memory;
pub(crate) mod rewind;
pub(crate) mod stats;
mod store;
mod tree;
