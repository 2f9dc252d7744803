//! A guest that draws an animated picture and prints to the serial port.
//!
//! - `picture`: what it shows
//! - `guest`: the program
//!
//! Built on `assemble` and the machine's layout.

mod guest;
mod picture;

pub use guest::guest;
pub use picture::{pixel, text};
