//! An RV64IMAC machine, to show what an emulator looks like that is built on these crates.
//!
//! The invariant: **whatever writes code, no hart executes what it was before**, once the write is
//! ordered before the fetch.
//!
//! ```text
//!  machine   harts, memory and devices; a screen, saved states, and a way back in time
//!    |
//!   hart     blocks of decoded instructions, executed one after the other
//!    |
//!   bus      TlbBus: memory-region's Tlb, and ram-block's code watch; or VecBus: an array
//!    |
//!   isa      from bits to operations
//! ```
//!
//! Where a reader may begin: `bus/code_pages.rs`, why decoded code is current; `hart/execute.rs`,
//! the loop; `machine/rewind.rs`, the way back.
//!
//! # Example
//!
//! ```
//! use rv64::{Machine, Outcome, Rewind, Screen, demo};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut machine = Machine::new(1 << 20, 1)?;
//! machine.load(0, &demo::guest(3))?;
//! let mut screen = Screen::new(&machine)?;
//! let mut rewind = Rewind::new(&machine, 10)?;
//!
//! let mut text = Vec::new();
//! while !text.ends_with(b"frame 0\n") {
//!     machine.run(100);
//!     text.extend(machine.board().uart.take_output());
//! }
//! let pages = rewind.checkpoint(&machine)?; // of RAM and of the frame buffer
//! assert!(pages > 60);
//! assert_eq!(machine.run(u64::MAX), Outcome::Finished(0));
//! text.extend(machine.board().uart.take_output());
//! assert_eq!(text, demo::text(3).as_bytes());
//!
//! screen.refresh()?; // draws the lines of pages that were written
//! assert_eq!(screen.pixels()[0], demo::pixel(2, 0, 0));
//! rewind.rewind(&mut machine, 0)?; // to the checkpoint
//! screen.refresh()?;
//! assert_eq!(screen.pixels()[0], demo::pixel(0, 0, 0));
//! # Ok(())
//! # }
//! ```
//!
//! Sources are the RISC-V Instruction Set Manual, volumes I (unprivileged) and II (privileged).

pub mod assemble;
mod bus;
pub mod demo;
mod devices;
mod hart;
mod isa;
mod machine;

pub use bus::bus::{Bus, CodePage, Fault};
pub use bus::code_pages::CodePages;
pub use bus::tlb_bus::{Devices, TlbBus};
pub use bus::vec_bus::VecBus;
pub use devices::clint::{Clint, TICKS_A_SECOND};
pub use devices::device::{Device, Reader};
pub use devices::finisher::Finisher;
pub use devices::uart::Uart;
pub use hart::hart::{Exit, Hart};
pub use hart::lines::{Interrupt, Lines};
pub use hart::registers::Registers;
pub use hart::state::{Exception, Mode, State, Trap};
pub use isa::decode::{decode, is_compressed};
pub use isa::op::{Amo, Kind, Op, SINK};
pub use machine::board::Board;
pub use machine::layout;
pub use machine::machine::{Machine, MachineError, Outcome};
pub use machine::rewind::Rewind;
pub use machine::savestate::SaveError;
pub use machine::screen::Screen;
