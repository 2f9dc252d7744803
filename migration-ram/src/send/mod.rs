//! The source of a migration, which writes the stream.
//!
//! Uses `wire` for the stream, `pages` for the send bitmap, and `converge` to decide how much to
//! slow the guest down.
//!
//! - `migration`: the run of a migration: its claim of the log, its connections and its threads;
//! - `precopy`: the algorithm: sync, rounds, pause, last round;
//! - `settings`: the settings of a migration, and their checks;
//! - `pages`: selects and encodes pages; `multifd`: sends them over several connections;
//! - `devices`: the sections of devices;
//! - `throttling`: slows the guest down; `rate_limit`: limits the source's bandwidth;
//! - `watch`: the idle deadline; `cancel`: ends a migration on request; `return_path`: the
//!   receiver's acknowledgement.

mod cancel;
mod devices;
mod migration;
mod multifd;
mod pages;
mod precopy;
mod rate_limit;
mod return_path;
mod settings;
mod throttling;
mod watch;

pub use cancel::Cancel;
pub use precopy::Migrated;
pub use settings::Precopy;
