//! The source of a migration, which writes the stream.
//!
//! It stands on `wire` for the stream, on `pages` for what is still to be sent, and on
//! `converge` for how much to slow a guest down.
//!
//! - `migration`: the run of a migration: its claim of the log, its connections and its threads;
//! - `precopy`: the algorithm: sync, rounds, pause, the rest;
//! - `settings`: what the source is told, and whether that can be done;
//! - `pages`: which pages go out next, and how; `multifd`: over several connections;
//! - `devices`: the sections of devices;
//! - `throttling`: what slows the guest down; `rate_limit`: what slows the source down;
//! - `watch`, `cancel`: what ends a migration; `return_path`: what the receiver answers.

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
