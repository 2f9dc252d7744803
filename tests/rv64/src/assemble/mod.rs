//! A small assembler, for guests that need no other tool.
//!
//! - `encode`: instructions as words
//! - `program`: instructions, data and labels

mod encode;
mod program;

pub use encode::{
    EBREAK, ECALL, FENCE, FENCE_I, MRET, NOP, WFI, add, addi, addiw, addw, amoadd_d, amoadd_w,
    amoswap_w, and, andi, auipc, csr, csrrc, csrrci, csrrs, csrrsi, csrrw, csrrwi, div, divu, jalr,
    lb, lbu, ld, lh, lhu, lr_d, lr_w, lui, lw, lwu, mul, mulhu, or, ori, reg, rem, remu, sb, sc_d,
    sc_w, sd, sh, sll, slli, slt, slti, sltiu, sltu, sra, srai, srl, srli, sub, subw, sw, xor,
    xori,
};
pub use program::{Condition, Label, Program};
