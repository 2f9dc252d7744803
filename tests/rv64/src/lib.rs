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
