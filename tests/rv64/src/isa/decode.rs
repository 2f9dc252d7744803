//! From bits to an [`Op`].

use crate::isa::op::Op;
use crate::isa::{compressed, full};

/// Whether an instruction that begins with `parcel` has 16 bits; otherwise it is decoded as one of
/// 32 bits (unprivileged ISA manual, "Expanded Instruction-Length Encoding").
pub fn is_compressed(parcel: u16) -> bool {
    parcel & 3 != 3
}

/// Decodes the instruction in `word`; of a compressed one the upper 16 bits are ignored.
///
/// ```
/// use rv64::{Kind, decode};
///
/// let op = decode(0x00c5_8533); // add a0, a1, a2
/// assert_eq!((op.kind, op.rd, op.rs1, op.rs2, op.len), (Kind::Add, 10, 11, 12, 4));
/// let op = decode(0x952e); // c.add a0, a1
/// assert_eq!((op.kind, op.rd, op.rs1, op.rs2, op.len), (Kind::Add, 10, 10, 11, 2));
/// ```
pub fn decode(word: u32) -> Op {
    let [low, high, ..] = word.to_le_bytes();
    let parcel = u16::from_le_bytes([low, high]);
    if is_compressed(parcel) { compressed::decode(parcel) } else { full::decode(word) }
}
