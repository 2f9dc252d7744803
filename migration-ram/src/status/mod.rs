//! What a migration says of itself; it stands on nothing.
//!
//! - `progress`: while it is under way, as QEMU's `query-migrate` does;
//! - `stats`: what it did, round by round.

pub(crate) mod progress;
pub(crate) mod stats;
