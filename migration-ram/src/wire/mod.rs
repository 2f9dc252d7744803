//! QEMU's migration stream, and the connections that it goes over.
//!
//! It knows nothing of which page is sent when, and stands on the crate's errors only.
//!
//! - `format`: the constants of the stream; `writer`, `reader`: its parts, with guest memory;
//! - `multifd`: the packets of channels;
//! - `transport`: what a stream goes through: sockets, pipes, files, memory; `socket`: sockets as
//!   a migration wants them;
//! - `deadline`: how long one side waits for the other.

pub(crate) mod deadline;
pub(crate) mod format;
pub(crate) mod multifd;
pub(crate) mod reader;
pub(crate) mod socket;
pub(crate) mod transport;
pub(crate) mod writer;
