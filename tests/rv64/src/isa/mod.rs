//! Instructions: from bits to operations, and to text.
//!
//! - `op`: one decoded instruction
//! - `full`, `compressed`: instructions of 32 and of 16 bits
//! - `decode`: either of them
//! - `text`: an instruction as a disassembler prints it

mod compressed;
pub(crate) mod decode;
mod full;
pub(crate) mod op;
mod text;
