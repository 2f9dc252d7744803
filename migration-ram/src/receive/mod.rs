//! The destination of a migration: a parser that trusts nothing.
//!
//! It stands on `wire` for the stream, and on `pages` for where memory has contents.
//!
//! - `receiver`: what the destination is told, and its run; `received`: what came;
//! - `sections`: the stream itself, with the records of RAM and the sections of devices;
//! - `unknown_sections`: where a section ends that no device knows;
//! - `multifd`: packets that come over several connections, and how these wait for each other;
//! - `read_ahead`: many pages with one system call; `decode`, `zstd`: deltas and compressed pages;
//! - `blocks`: the blocks that the stream has, and where their pages go;
//! - `return_path`: what the source is answered.

mod blocks;
mod decode;
mod multifd;
mod read_ahead;
mod received;
mod receiver;
mod return_path;
mod sections;
mod unknown_sections;
#[cfg(feature = "zstd")]
mod zstd;

pub use blocks::BlockTarget;
pub use received::{BlockInfo, Received};
pub use receiver::{Receiver, receive};
