//! Instructions of 16 bits: the unprivileged ISA manual, "C" Extension, "RVC Instruction Set
//! Listings". Each is an instruction of 32 bits in a shorter form.

use crate::isa::op::{Kind, Op, destination};

/// The stack pointer, which several name without a field for it.
const SP: u8 = 2;

/// Decodes an instruction of 16 bits, whose lowest two are not both ones.
pub(super) fn decode(parcel: u16) -> Op {
    let fields = Fields(parcel.into());
    let op = match parcel & 3 {
        0 => fields.quadrant_0(),
        1 => fields.quadrant_1(),
        _ => fields.quadrant_2(),
    };
    op.unwrap_or(Op::illegal(parcel.into(), 2))
}

#[derive(Clone, Copy)]
struct Fields(u32);

/// An instruction of 16 bits; `rd` is a register's number.
fn op(kind: Kind, rd: u8, rs1: u8, rs2: u8, imm: i32) -> Option<Op> {
    Some(Op { kind, rd: destination(rd), rs1, rs2, len: 2, at: 0, imm })
}

impl Fields {
    /// `count` bits from bit `from` on, as bits from `to` on.
    fn bits(self, from: u32, count: u32, to: u32) -> i32 {
        ((self.0 >> from & ((1 << count) - 1)) << to).cast_signed()
    }

    fn funct3(self) -> i32 {
        self.bits(13, 3, 0)
    }

    /// One of 32 registers.
    fn register(self, from: u32) -> u8 {
        self.bits(from, 5, 0).to_le_bytes()[0]
    }

    /// One of x8 to x15.
    fn popular(self, from: u32) -> u8 {
        8 + self.bits(from, 3, 0).to_le_bytes()[0]
    }

    /// Six bits with a sign: bit 12, and bits 6 to 2.
    fn immediate(self) -> i32 {
        self.shift() << 26 >> 26
    }

    /// Six bits without a sign.
    fn shift(self) -> i32 {
        self.bits(12, 1, 5) | self.bits(2, 5, 0)
    }

    fn offset_of_word(self) -> i32 {
        self.bits(10, 3, 3) | self.bits(6, 1, 2) | self.bits(5, 1, 6)
    }

    fn offset_of_double(self) -> i32 {
        self.bits(10, 3, 3) | self.bits(5, 2, 6)
    }

    fn jump_offset(self) -> i32 {
        let offset = self.bits(12, 1, 11)
            | self.bits(11, 1, 4)
            | self.bits(9, 2, 8)
            | self.bits(8, 1, 10)
            | self.bits(7, 1, 6)
            | self.bits(6, 1, 7)
            | self.bits(3, 3, 1)
            | self.bits(2, 1, 5);
        offset << 20 >> 20
    }

    fn branch_offset(self) -> i32 {
        let offset = self.bits(12, 1, 8)
            | self.bits(10, 2, 3)
            | self.bits(5, 2, 6)
            | self.bits(3, 2, 1)
            | self.bits(2, 1, 5);
        offset << 23 >> 23
    }

    fn quadrant_0(self) -> Option<Op> {
        let (rd, rs1) = (self.popular(2), self.popular(7));
        match self.funct3() {
            0 => {
                let imm = self.bits(11, 2, 4)
                    | self.bits(7, 4, 6)
                    | self.bits(6, 1, 2)
                    | self.bits(5, 1, 3);
                (imm != 0).then_some(())?;
                op(Kind::Addi, rd, SP, 0, imm)
            }
            2 => op(Kind::Lw, rd, rs1, 0, self.offset_of_word()),
            3 => op(Kind::Ld, rd, rs1, 0, self.offset_of_double()),
            6 => op(Kind::Sw, 0, rs1, rd, self.offset_of_word()),
            7 => op(Kind::Sd, 0, rs1, rd, self.offset_of_double()),
            _ => None,
        }
    }

    fn quadrant_1(self) -> Option<Op> {
        let (rd, imm) = (self.register(7), self.immediate());
        match self.funct3() {
            0 => op(Kind::Addi, rd, rd, 0, imm),
            1 if rd != 0 => op(Kind::Addiw, rd, rd, 0, imm),
            2 => op(Kind::Addi, rd, 0, 0, imm),
            3 if imm == 0 => None,
            3 if rd == SP => {
                let imm = self.bits(12, 1, 9)
                    | self.bits(6, 1, 4)
                    | self.bits(5, 1, 6)
                    | self.bits(3, 2, 7)
                    | self.bits(2, 1, 5);
                op(Kind::Addi, SP, SP, 0, imm << 22 >> 22)
            }
            3 => op(Kind::Lui, rd, 0, 0, imm << 12),
            4 => self.arithmetic(),
            5 => op(Kind::Jal, 0, 0, 0, self.jump_offset()),
            6 => op(Kind::Beq, 0, self.popular(7), 0, self.branch_offset()),
            7 => op(Kind::Bne, 0, self.popular(7), 0, self.branch_offset()),
            _ => None,
        }
    }

    fn arithmetic(self) -> Option<Op> {
        let (rd, rs2) = (self.popular(7), self.popular(2));
        let kind = match (self.bits(10, 2, 0), self.bits(12, 1, 0), self.bits(5, 2, 0)) {
            (0, ..) => return op(Kind::Srli, rd, rd, 0, self.shift()),
            (1, ..) => return op(Kind::Srai, rd, rd, 0, self.shift()),
            (2, ..) => return op(Kind::Andi, rd, rd, 0, self.immediate()),
            (_, 0, 0) => Kind::Sub,
            (_, 0, 1) => Kind::Xor,
            (_, 0, 2) => Kind::Or,
            (_, 0, _) => Kind::And,
            (_, _, 0) => Kind::Subw,
            (_, _, 1) => Kind::Addw,
            _ => return None,
        };
        op(kind, rd, rd, rs2, 0)
    }

    fn quadrant_2(self) -> Option<Op> {
        let (rd, rs2) = (self.register(7), self.register(2));
        match self.funct3() {
            0 => op(Kind::Slli, rd, rd, 0, self.shift()),
            2 if rd != 0 => {
                let imm = self.bits(12, 1, 5) | self.bits(4, 3, 2) | self.bits(2, 2, 6);
                op(Kind::Lw, rd, SP, 0, imm)
            }
            3 if rd != 0 => {
                let imm = self.bits(12, 1, 5) | self.bits(5, 2, 3) | self.bits(2, 3, 6);
                op(Kind::Ld, rd, SP, 0, imm)
            }
            4 => match (self.bits(12, 1, 0), rd, rs2) {
                (0, 0, 0) => None,
                (0, _, 0) => op(Kind::Jalr, 0, rd, 0, 0),
                (0, ..) => op(Kind::Add, rd, 0, rs2, 0),
                (_, 0, 0) => op(Kind::Ebreak, 0, 0, 0, 0),
                (_, _, 0) => op(Kind::Jalr, 1, rd, 0, 0),
                _ => op(Kind::Add, rd, rd, rs2, 0),
            },
            6 => op(Kind::Sw, 0, SP, rs2, self.bits(9, 4, 2) | self.bits(7, 2, 6)),
            7 => op(Kind::Sd, 0, SP, rs2, self.bits(10, 3, 3) | self.bits(7, 3, 6)),
            _ => None,
        }
    }
}
