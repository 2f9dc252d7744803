//! An instruction as text, as GNU objdump prints it with `-M no-aliases,numeric`.

use std::fmt;

use crate::isa::op::{Kind, Op, SINK};

fn register(number: u8) -> u8 {
    if number == SINK { 0 } else { number }
}

/// A mnemonic's parts are joined by dots, not by capitals.
fn mnemonic(kind: Kind) -> String {
    match kind {
        Kind::LrW => "lr.w".to_owned(),
        Kind::LrD => "lr.d".to_owned(),
        Kind::ScW => "sc.w".to_owned(),
        Kind::ScD => "sc.d".to_owned(),
        Kind::AmoW(amo) => format!("amo{amo:?}.w").to_lowercase(),
        Kind::AmoD(amo) => format!("amo{amo:?}.d").to_lowercase(),
        Kind::FenceI => "fence.i".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Offsets of branches and jumps are relative to the instruction: `.+8`, `.-4`. Orderings of atomic
/// instructions and fences are left out.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Kind::*;
        let name = mnemonic(self.kind);
        let [rd, rs1, rs2] = [self.rd, self.rs1, self.rs2].map(register);
        let imm = self.imm;
        match self.kind {
            Lui | Auipc => write!(f, "{name} x{rd},{:#x}", imm.cast_unsigned() >> 12),
            Jal => write!(f, "{name} x{rd},.{imm:+}"),
            Beq | Bne | Blt | Bge | Bltu | Bgeu => write!(f, "{name} x{rs1},x{rs2},.{imm:+}"),
            Jalr | Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu => write!(f, "{name} x{rd},{imm}(x{rs1})"),
            Sb | Sh | Sw | Sd => write!(f, "{name} x{rs2},{imm}(x{rs1})"),
            Addi | Slti | Sltiu | Xori | Ori | Andi | Addiw => {
                write!(f, "{name} x{rd},x{rs1},{imm}")
            }
            Slli | Srli | Srai | Slliw | Srliw | Sraiw => {
                write!(f, "{name} x{rd},x{rs1},{imm:#x}")
            }
            LrW | LrD => write!(f, "{name} x{rd},(x{rs1})"),
            ScW | ScD | AmoW(_) | AmoD(_) => write!(f, "{name} x{rd},x{rs2},(x{rs1})"),
            Csrrw | Csrrs | Csrrc => write!(f, "{name} x{rd},{imm:#x},x{rs1}"),
            Csrrwi | Csrrsi | Csrrci => write!(f, "{name} x{rd},{imm:#x},{rs1}"),
            Fence | FenceI | Ecall | Ebreak | Mret | Wfi => f.write_str(&name),
            Illegal => write!(f, "illegal {imm:#x}"),
            Add | Sub | Sll | Slt | Sltu | Xor | Srl | Sra | Or | And | Addw | Subw | Sllw
            | Srlw | Sraw | Mul | Mulh | Mulhsu | Mulhu | Div | Divu | Rem | Remu | Mulw | Divw
            | Divuw | Remw | Remuw => write!(f, "{name} x{rd},x{rs1},x{rs2}"),
        }
    }
}
