//! One decoded instruction.

/// The place of [`Registers`](crate::Registers) that instructions write which name x0 as their
/// destination: so no write has to be compared with x0.
pub const SINK: u8 = 32;

/// A decoded instruction, of 12 bytes. Compressed ones are those that they expand to.
///
/// Fields that an instruction does not have are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub kind: Kind,
    /// The destination, from 1 to 31, or [`SINK`] for x0.
    pub rd: u8,
    /// The first source, from 0 to 31; the immediate of `csrrwi`, `csrrsi` and `csrrci`.
    pub rs1: u8,
    /// The second source, from 0 to 31.
    pub rs2: u8,
    /// Bytes of the instruction in memory: 2 or 4.
    pub len: u8,
    /// Bytes from the start of the block that it is in; 0 as it is decoded.
    pub at: u16,
    /// The immediate, sign-extended: an offset in bytes, a shift, a CSR's number, or all bits of an
    /// instruction that is illegal.
    pub imm: i32,
}

/// What an instruction does; named as the unprivileged ISA manual does.
#[allow(missing_docs)] // the manual's mnemonics
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    // RV64I
    Lui,
    Auipc,
    Jal,
    Jalr,
    Beq,
    Bne,
    Blt,
    Bge,
    Bltu,
    Bgeu,
    Lb,
    Lh,
    Lw,
    Ld,
    Lbu,
    Lhu,
    Lwu,
    Sb,
    Sh,
    Sw,
    Sd,
    Addi,
    Slti,
    Sltiu,
    Xori,
    Ori,
    Andi,
    Slli,
    Srli,
    Srai,
    Addiw,
    Slliw,
    Srliw,
    Sraiw,
    Add,
    Sub,
    Sll,
    Slt,
    Sltu,
    Xor,
    Srl,
    Sra,
    Or,
    And,
    Addw,
    Subw,
    Sllw,
    Srlw,
    Sraw,
    Fence,
    Ecall,
    Ebreak,
    // M
    Mul,
    Mulh,
    Mulhsu,
    Mulhu,
    Div,
    Divu,
    Rem,
    Remu,
    Mulw,
    Divw,
    Divuw,
    Remw,
    Remuw,
    // A
    LrW,
    LrD,
    ScW,
    ScD,
    AmoW(Amo),
    AmoD(Amo),
    // Zifencei
    FenceI,
    // Zicsr
    Csrrw,
    Csrrs,
    Csrrc,
    Csrrwi,
    Csrrsi,
    Csrrci,
    // Privileged
    Mret,
    Wfi,
    /// No instruction of RV64IMAC.
    Illegal,
}

/// What an AMO makes of the value in memory and its operand.
#[allow(missing_docs)] // the manual's mnemonics
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amo {
    Swap,
    Add,
    Xor,
    And,
    Or,
    Min,
    Max,
    Minu,
    Maxu,
}

impl Op {
    /// An instruction of the bits `word` that is none.
    pub(super) const fn illegal(word: u32, len: u8) -> Self {
        let imm = word.cast_signed();
        Self { kind: Kind::Illegal, rd: SINK, rs1: 0, rs2: 0, len, at: 0, imm }
    }

    /// Whether the next instruction cannot be executed straight after this one: a jump, a trap, or
    /// a change of what can interrupt the hart, or of the code.
    ///
    /// A branch is none: execution leaves its block only if it is taken.
    pub fn ends_block(self) -> bool {
        use Kind::*;
        matches!(self.kind, Jal | Jalr | Ecall | Ebreak | Mret | Wfi | FenceI | Illegal)
            || self.is_csr()
    }

    /// Whether it is one of Zicsr.
    pub fn is_csr(self) -> bool {
        use Kind::*;
        matches!(self.kind, Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci)
    }
}

/// The destination as [`Op`] has it.
pub(super) const fn destination(register: u8) -> u8 {
    if register == 0 { SINK } else { register }
}
