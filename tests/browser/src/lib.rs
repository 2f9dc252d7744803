//! A RISC-V machine with a VGA, for a page in a browser: `cargo run --release -p browser` builds
//! and serves it.
//!
//! The invariant: **what the page shows depends on the guest's time and the keys alone**, so that
//! it is, pixel by pixel, what a native run with the same keys at the same times shows.
//!
//! ```text
//!  exports    what JavaScript calls; a bad call is an error code
//!    |
//!  computer   rv64's machine, display-vga's VGA on its map, keys to its serial port
//!    |
//!  canvas     the picture as a canvas takes it, converted where it is damaged
//!  guest      sets a mode by MMIO, draws, and moves a lens by the arrow keys
//!    |
//!  scene      what the guest draws, defined without it
//!  layout     where the VGA is, how long a frame takes
//! ```
//!
//! # Example
//!
//! ```
//! use browser::{Computer, Key, layout::FRAME};
//!
//! let mut computer = Computer::new()?;
//! computer.run_for(FRAME); // draws the whole picture
//! assert!(computer.refresh()?.full);
//! computer.run_for(FRAME); // moves the ball
//! let refresh = computer.refresh()?;
//! assert!(!refresh.full && refresh.lines < 60);
//! computer.key(Key::Left as u32, true)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where the unsafe code is
//!
//! In `exports`, where functions keep the names by which JavaScript calls them.

mod canvas;
mod computer;
pub mod exports;
mod guest;
pub mod layout;
mod scene;

pub use canvas::Canvas;
pub use computer::{Computer, ComputerError, KeyError};
pub use guest::guest;
pub use scene::{Key, Scene};
