//! The destination of a migration: a parser of an untrusted stream.
//!
//! Uses `wire` for the stream, and `pages` to find populated memory.
//!
//! - `receiver`: the settings of the destination, and its run; `received`: the result;
//! - `sections`: parses the stream, with the records of RAM and the sections of devices;
//! - `unknown_sections`: finds the end of a section that no device is registered for;
//! - `multifd`: receives packets on several connections, and syncs these;
//! - `read_ahead`: reads many pages with one system call; `decode`, `zstd`: decodes deltas and
//!   compressed pages;
//! - `blocks`: the stream's blocks, and the memory that their pages are written to;
//! - `return_path`: the messages to the source.

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
