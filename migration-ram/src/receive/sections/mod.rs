//! Parses the stream.
//!
//! - `stream`: its beginning, parts, commands and end, on top of
//! - `records`, the records of RAM, and `devices`, the sections of devices, registered here or not;
//! - `state`: the parser's state, below all of them.

mod devices;
mod records;
mod state;
mod stream;

pub(super) use state::{Sections, Settings};
