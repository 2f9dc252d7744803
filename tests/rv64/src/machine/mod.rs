//! Harts, memory and devices put together.
//!
//! - `layout`: where things are
//! - `board`: the devices, and how harts reach them
//! - `machine`: the parts, and all harts on one thread
//! - `threads`: each hart on a thread of its own
//! - `screen`: the picture in the frame buffer
//! - `processors`: harts and devices as bytes
//! - `savestate`: the whole machine as bytes
//! - `rewind`: checkpoints, and the way back to them
//!
//! Built on all others.

pub(crate) mod board;
pub mod layout;
#[allow(clippy::module_inception)] // the machine is the module's idea
pub(crate) mod machine;
mod processors;
pub(crate) mod rewind;
pub(crate) mod savestate;
pub(crate) mod screen;
mod threads;
