//! A processor of one thread.
//!
//! - `registers`, `lines`: its integer registers, and its inputs
//! - `state`, `csr`: its other registers, and what traps do to them
//! - `arithmetic`: what instructions compute
//! - `blocks`: decoded blocks, found by their addresses
//! - `execute`: the instructions of a block, and of those that follow
//! - `hart`: block after block
//!
//! Built on `bus` and `isa`.

mod arithmetic;
mod blocks;
mod csr;
mod execute;
#[allow(clippy::module_inception)] // the processor is the module's idea
pub(crate) mod hart;
pub(crate) mod lines;
pub(crate) mod registers;
pub(crate) mod state;
