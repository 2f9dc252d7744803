//! Instructions of 32 bits: the unprivileged ISA manual, "RV32/64G Instruction Set Listings".

use crate::isa::op::{Amo, Kind, Op, destination};

/// Decodes an instruction of 32 bits, whose lowest two are ones.
pub(super) fn decode(word: u32) -> Op {
    let fields = Fields(word);
    fields.op().unwrap_or(Op::illegal(word, 4))
}

#[derive(Clone, Copy)]
struct Fields(u32);

impl Fields {
    /// `count` bits from bit `from` on.
    fn bits(self, from: u32, count: u32) -> u32 {
        self.0 >> from & ((1 << count) - 1)
    }

    fn register(self, from: u32) -> u8 {
        self.bits(from, 5).to_le_bytes()[0]
    }

    fn funct3(self) -> u32 {
        self.bits(12, 3)
    }

    fn funct7(self) -> u32 {
        self.bits(25, 7)
    }

    fn i_immediate(self) -> i32 {
        self.0.cast_signed() >> 20
    }

    fn s_immediate(self) -> i32 {
        self.0.cast_signed() >> 25 << 5 | self.bits(7, 5).cast_signed()
    }

    fn b_immediate(self) -> i32 {
        let low = self.bits(8, 4) << 1 | self.bits(25, 6) << 5 | self.bits(7, 1) << 11;
        self.0.cast_signed() >> 31 << 12 | low.cast_signed()
    }

    fn u_immediate(self) -> i32 {
        self.0.cast_signed() >> 12 << 12
    }

    fn j_immediate(self) -> i32 {
        let low = self.bits(21, 10) << 1 | self.bits(20, 1) << 11 | self.bits(12, 8) << 12;
        self.0.cast_signed() >> 31 << 20 | low.cast_signed()
    }

    fn destination(self) -> u8 {
        destination(self.register(7))
    }

    fn of(self, kind: Kind) -> Op {
        Op { kind, rd: destination(0), rs1: 0, rs2: 0, len: 4, at: 0, imm: 0 }
    }

    fn r_type(self, kind: Kind) -> Op {
        let (rs1, rs2) = (self.register(15), self.register(20));
        Op { rd: self.destination(), rs1, rs2, ..self.of(kind) }
    }

    fn i_type(self, kind: Kind, imm: i32) -> Op {
        Op { rd: self.destination(), rs1: self.register(15), imm, ..self.of(kind) }
    }

    /// Of stores and branches.
    fn without_destination(self, kind: Kind, imm: i32) -> Op {
        Op { rs1: self.register(15), rs2: self.register(20), imm, ..self.of(kind) }
    }

    fn of_immediate(self, kind: Kind, imm: i32) -> Op {
        Op { rd: self.destination(), imm, ..self.of(kind) }
    }

    fn op(self) -> Option<Op> {
        use Kind::*;
        Some(match self.bits(2, 5) {
            0b01101 => self.of_immediate(Lui, self.u_immediate()),
            0b00101 => self.of_immediate(Auipc, self.u_immediate()),
            0b11011 => self.of_immediate(Jal, self.j_immediate()),
            0b11001 if self.funct3() == 0 => self.i_type(Jalr, self.i_immediate()),
            0b11000 => self.without_destination(self.branch()?, self.b_immediate()),
            0b00000 => self.i_type(self.load()?, self.i_immediate()),
            0b01000 => self.without_destination(self.store()?, self.s_immediate()),
            0b00100 => return self.immediate(),
            0b00110 => return self.immediate_of_words(),
            0b01100 => self.r_type(self.register_register()?),
            0b01110 => self.r_type(self.register_register_of_words()?),
            0b00011 => match self.funct3() {
                0 => self.of(Fence),
                1 => self.of(FenceI),
                _ => return None,
            },
            0b01011 => return self.atomic(),
            0b11100 => return self.system(),
            _ => return None,
        })
    }

    fn branch(self) -> Option<Kind> {
        use Kind::*;
        Some(match self.funct3() {
            0 => Beq,
            1 => Bne,
            4 => Blt,
            5 => Bge,
            6 => Bltu,
            7 => Bgeu,
            _ => return None,
        })
    }

    fn load(self) -> Option<Kind> {
        use Kind::*;
        [Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu].get(self.funct3() as usize).copied()
    }

    fn store(self) -> Option<Kind> {
        use Kind::*;
        [Sb, Sh, Sw, Sd].get(self.funct3() as usize).copied()
    }

    fn immediate(self) -> Option<Op> {
        use Kind::*;
        let kind = match (self.funct3(), self.bits(26, 6)) {
            (0, _) => Addi,
            (2, _) => Slti,
            (3, _) => Sltiu,
            (4, _) => Xori,
            (6, _) => Ori,
            (7, _) => Andi,
            (1, 0) => Slli,
            (5, 0) => Srli,
            (5, 0b010000) => Srai,
            _ => return None,
        };
        let is_shift = matches!(kind, Slli | Srli | Srai);
        let shift = self.bits(20, 6).cast_signed();
        Some(self.i_type(kind, if is_shift { shift } else { self.i_immediate() }))
    }

    fn immediate_of_words(self) -> Option<Op> {
        use Kind::*;
        let shift = self.bits(20, 5).cast_signed();
        Some(match (self.funct3(), self.funct7()) {
            (0, _) => self.i_type(Addiw, self.i_immediate()),
            (1, 0) => self.i_type(Slliw, shift),
            (5, 0) => self.i_type(Srliw, shift),
            (5, 0b0100000) => self.i_type(Sraiw, shift),
            _ => return None,
        })
    }

    fn register_register(self) -> Option<Kind> {
        use Kind::*;
        let base = [Add, Sll, Slt, Sltu, Xor, Srl, Or, And];
        let multiply = [Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu];
        Some(match (self.funct7(), self.funct3()) {
            (0, at) => base[at as usize],
            (1, at) => multiply[at as usize],
            (0b0100000, 0) => Sub,
            (0b0100000, 5) => Sra,
            _ => return None,
        })
    }

    fn register_register_of_words(self) -> Option<Kind> {
        use Kind::*;
        Some(match (self.funct7(), self.funct3()) {
            (0, 0) => Addw,
            (0, 1) => Sllw,
            (0, 5) => Srlw,
            (0b0100000, 0) => Subw,
            (0b0100000, 5) => Sraw,
            (1, 0) => Mulw,
            (1, 4) => Divw,
            (1, 5) => Divuw,
            (1, 6) => Remw,
            (1, 7) => Remuw,
            _ => return None,
        })
    }

    /// The bits `aq` and `rl` are not kept: all are executed as if both were set.
    fn atomic(self) -> Option<Op> {
        use Kind::*;
        let is_word = match self.funct3() {
            2 => true,
            3 => false,
            _ => return None,
        };
        let amo = match self.bits(27, 5) {
            0b00010 if self.register(20) == 0 => {
                return Some(self.r_type(if is_word { LrW } else { LrD }));
            }
            0b00011 => return Some(self.r_type(if is_word { ScW } else { ScD })),
            0b00001 => Amo::Swap,
            0b00000 => Amo::Add,
            0b00100 => Amo::Xor,
            0b01100 => Amo::And,
            0b01000 => Amo::Or,
            0b10000 => Amo::Min,
            0b10100 => Amo::Max,
            0b11000 => Amo::Minu,
            0b11100 => Amo::Maxu,
            _ => return None,
        };
        Some(self.r_type(if is_word { AmoW(amo) } else { AmoD(amo) }))
    }

    fn system(self) -> Option<Op> {
        use Kind::*;
        let kind = match (self.funct3(), self.0) {
            (_, 0x0000_0073) => return Some(self.of(Ecall)),
            (_, 0x0010_0073) => return Some(self.of(Ebreak)),
            (_, 0x3020_0073) => return Some(self.of(Mret)),
            (_, 0x1050_0073) => return Some(self.of(Wfi)),
            (1, _) => Csrrw,
            (2, _) => Csrrs,
            (3, _) => Csrrc,
            (5, _) => Csrrwi,
            (6, _) => Csrrsi,
            (7, _) => Csrrci,
            _ => return None,
        };
        Some(self.i_type(kind, self.bits(20, 12).cast_signed()))
    }
}
