//! Progress and statistics of a migration. Uses no other module.
//!
//! - `progress`: of a migration under way, as QEMU's `query-migrate`;
//! - `stats`: of a migration that has ended, round by round.

pub(crate) mod progress;
pub(crate) mod stats;
