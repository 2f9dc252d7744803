//! RV32I, as the unprivileged specification of RISC-V gives it (chapter 2 and the
//! listing of opcodes).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Subtract,
    ShiftLeft,
    Less,
    LessUnsigned,
    Xor,
    ShiftRight,
    ShiftRightSigned,
    Or,
    And,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Equal,
    NotEqual,
    Less,
    GreaterEqual,
    LessUnsigned,
    GreaterEqualUnsigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Byte,
    Half,
    Word,
}

impl Width {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }
}

/// A decoded instruction; offsets and values are sign-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    Immediate { rd: u8, value: u32 },
    PcRelative { rd: u8, offset: u32 },
    Jump { rd: u8, offset: u32 },
    JumpRegister { rd: u8, base: u8, offset: u32 },
    Branch { condition: Condition, rs1: u8, rs2: u8, offset: u32 },
    Load { width: Width, signed: bool, rd: u8, base: u8, offset: u32 },
    Store { width: Width, source: u8, base: u8, offset: u32 },
    AluImmediate { alu: Alu, rd: u8, rs1: u8, value: u32 },
    Alu { alu: Alu, rd: u8, rs1: u8, rs2: u8 },
    Fence,
    Call,
    Break,
    Illegal,
}

impl Instruction {
    /// Whether what follows in memory need not be executed next.
    pub(super) fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Jump { .. }
                | Self::JumpRegister { .. }
                | Self::Branch { .. }
                | Self::Call
                | Self::Break
                | Self::Illegal
        )
    }
}

/// Bits `from..from + count` of `word`.
fn bits(word: u32, from: u32, count: u32) -> u32 {
    (word >> from) & ((1 << count) - 1)
}

fn register(word: u32, from: u32) -> u8 {
    bits(word, from, 5).to_le_bytes()[0]
}

/// The word shifted right with its sign.
fn signed(word: u32, shift: u32) -> u32 {
    (word.cast_signed() >> shift).cast_unsigned()
}

fn branch_offset(word: u32) -> u32 {
    (signed(word, 19) & !0xfff)
        | bits(word, 7, 1) << 11
        | bits(word, 25, 6) << 5
        | bits(word, 8, 4) << 1
}

fn jump_offset(word: u32) -> u32 {
    (signed(word, 11) & !0xf_ffff)
        | bits(word, 12, 8) << 12
        | bits(word, 20, 1) << 11
        | bits(word, 21, 10) << 1
}

fn alu(word: u32, immediate: bool) -> Option<Alu> {
    let (function, seven) = (bits(word, 12, 3), bits(word, 25, 7));
    let alu = match function {
        0 if !immediate && seven == 0x20 => Alu::Subtract,
        0 => Alu::Add,
        1 => Alu::ShiftLeft,
        2 => Alu::Less,
        3 => Alu::LessUnsigned,
        4 => Alu::Xor,
        5 if seven == 0x20 => Alu::ShiftRightSigned,
        5 => Alu::ShiftRight,
        6 => Alu::Or,
        _ => Alu::And,
    };
    // The upper bits say something only in shifts and between two registers.
    let plain = match alu {
        Alu::Subtract | Alu::ShiftRightSigned => seven == 0x20,
        Alu::ShiftLeft | Alu::ShiftRight => seven == 0,
        _ => immediate || seven == 0,
    };
    plain.then_some(alu)
}

pub(super) fn decode(word: u32) -> Instruction {
    try_decode(word).unwrap_or(Instruction::Illegal)
}

fn try_decode(word: u32) -> Option<Instruction> {
    let (rd, rs1, rs2) = (register(word, 7), register(word, 15), register(word, 20));
    let function = bits(word, 12, 3);
    let immediate = signed(word, 20);
    Some(match bits(word, 0, 7) {
        0x37 => Instruction::Immediate { rd, value: word & !0xfff },
        0x17 => Instruction::PcRelative { rd, offset: word & !0xfff },
        0x6f => Instruction::Jump { rd, offset: jump_offset(word) },
        0x67 if function == 0 => Instruction::JumpRegister { rd, base: rs1, offset: immediate },
        0x63 => {
            let condition = match function {
                0 => Condition::Equal,
                1 => Condition::NotEqual,
                4 => Condition::Less,
                5 => Condition::GreaterEqual,
                6 => Condition::LessUnsigned,
                7 => Condition::GreaterEqualUnsigned,
                _ => return None,
            };
            Instruction::Branch { condition, rs1, rs2, offset: branch_offset(word) }
        }
        0x03 => {
            let (width, signed) = match function {
                0 => (Width::Byte, true),
                1 => (Width::Half, true),
                2 => (Width::Word, false),
                4 => (Width::Byte, false),
                5 => (Width::Half, false),
                _ => return None,
            };
            Instruction::Load { width, signed, rd, base: rs1, offset: immediate }
        }
        0x23 => {
            let width = match function {
                0 => Width::Byte,
                1 => Width::Half,
                2 => Width::Word,
                _ => return None,
            };
            let offset = (signed(word, 20) & !0x1f) | u32::from(rd);
            Instruction::Store { width, source: rs2, base: rs1, offset }
        }
        0x13 => {
            let alu = alu(word, true)?;
            Instruction::AluImmediate { alu, rd, rs1, value: immediate }
        }
        0x33 => Instruction::Alu { alu: alu(word, false)?, rd, rs1, rs2 },
        0x0f => Instruction::Fence,
        0x73 if word == 0x73 => Instruction::Call,
        0x73 if word == 0x0010_0073 => Instruction::Break,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::assemble as asm;
    use super::*;

    /// Words that a RISC-V assembler makes of the instructions beside them.
    #[test]
    fn words_are_decoded_as_assemblers_write_them() {
        use super::Alu as Op;
        use Instruction::*;
        for (word, expected) in [
            // li ra, -1
            (0xfff0_0093, AluImmediate { alu: Op::Add, rd: 1, rs1: 0, value: u32::MAX }),
            (0x1234_52b7, Immediate { rd: 5, value: 0x1234_5000 }), // lui t0, 0x12345
            // srai ra, ra, 2
            (0x4020_d093, AluImmediate { alu: Op::ShiftRightSigned, rd: 1, rs1: 1, value: 0x402 }),
            (0x4031_00b3, Alu { alu: Op::Subtract, rd: 1, rs1: 2, rs2: 3 }), // sub ra, sp, gp
            // sw ra, -4(sp)
            (0xfe11_2e23, Store { width: Width::Word, source: 1, base: 2, offset: 0xffff_fffc }),
            (
                0xffc1_2083,
                Load { width: Width::Word, signed: false, rd: 1, base: 2, offset: 0xffff_fffc },
            ), // lw ra, -4(sp)
            (
                0xfe00_0ee3,
                Branch { condition: Condition::Equal, rs1: 0, rs2: 0, offset: 0xffff_fffc },
            ), // beqz zero, .-4
            (0xffdf_f06f, Jump { rd: 0, offset: 0xffff_fffc }), // j .-4
            (0x0000_8067, JumpRegister { rd: 0, base: 1, offset: 0 }), // ret
            (0x0000_0073, Call),
            (0x0010_0073, Break),
            (0x0000_100f, Fence), // fence.i
            (0x0000_0000, Illegal),
            (0xffff_ffff, Illegal),
        ] {
            assert_eq!(decode(word), expected, "{word:#010x}");
        }
    }

    #[test]
    fn what_is_assembled_is_decoded() {
        for offset in [-4096, -2048, -4, 0, 2, 8, 2046, 4094] {
            let bits = i32::cast_unsigned(offset);
            let Instruction::Branch { offset: found, .. } = decode(asm::bne(1, 2, offset)) else {
                panic!("no branch")
            };
            assert_eq!(found, bits);
            let Instruction::Jump { offset: found, .. } = decode(asm::jal(1, offset * 256)) else {
                panic!("no jump")
            };
            assert_eq!(found, (offset * 256).cast_unsigned());
        }
        for offset in [-2048, -1, 0, 1, 2047] {
            let bits = i32::cast_unsigned(offset);
            assert!(matches!(decode(asm::sw(1, 2, offset)),
                    Instruction::Store { source: 1, base: 2, offset, .. } if offset == bits));
            assert!(matches!(decode(asm::lw(1, 2, offset)),
                    Instruction::Load { rd: 1, base: 2, offset, .. } if offset == bits));
        }
    }
}
