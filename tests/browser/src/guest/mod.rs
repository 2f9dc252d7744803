//! The guest: a program without an operating system that draws the [scene](crate::Scene).
//!
//! Each frame it reads what was typed, moves the ball and the lens, draws anew what they have left
//! and where they are, and sleeps until the clock says that the next frame is due.
//!
//! - `program`: what it does from frame to frame
//! - `moves`: keys, and what they and the time move
//! - `draw`: rectangles of the scene
//! - `numbers`: constants and limits
//!
//! | register | what it holds |
//! |---|---|
//! | `s0` | frames that were drawn |
//! | `s1`, `s2` | the lens' column and line |
//! | `s3`, `s4` | the ball's |
//! | `s5`, `s6` | the ball's velocity |
//! | `s7` | the keys that are down |
//! | `s8` | the time of the next frame |

mod draw;
mod moves;
mod numbers;
mod program;

pub use program::guest;
