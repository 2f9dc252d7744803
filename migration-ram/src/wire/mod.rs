//! QEMU's migration stream, and the connections that carry it.
//!
//! Independent of which page is sent when; uses only the crate's errors.
//!
//! - `format`: the constants of the stream; `writer`, `reader`: encode and decode its fields and
//!   guest memory;
//! - `multifd`: the packets of channels;
//! - `transport`: connections: sockets, pipes, files, memory; `socket`: sockets with the options
//!   that a migration needs;
//! - `deadline`: how long the receiver waits for the source, and the settings of both sides.

pub(crate) mod deadline;
pub(crate) mod format;
pub(crate) mod multifd;
pub(crate) mod reader;
#[cfg(target_os = "linux")]
pub(crate) mod socket;
pub(crate) mod transport;
pub(crate) mod writer;
