//! Instructions as words, by their mnemonics. Registers are numbers from 0 to 31.
//!
//! Immediates are not checked: bits that a field has no room for are dropped.

fn field(number: u8, at: u32) -> u32 {
    u32::from(number & 31) << at
}

/// `funct7`, `funct3` and the opcode, without registers.
pub(crate) fn r_type(bits: u32, rd: u8, rs1: u8, rs2: u8) -> u32 {
    bits | field(rd, 7) | field(rs1, 15) | field(rs2, 20)
}

pub(crate) fn i_type(bits: u32, rd: u8, rs1: u8, imm: i32) -> u32 {
    bits | field(rd, 7) | field(rs1, 15) | imm.cast_unsigned() << 20
}

pub(crate) fn s_type(bits: u32, rs2: u8, rs1: u8, imm: i32) -> u32 {
    let imm = imm.cast_unsigned();
    bits | field(rs1, 15) | field(rs2, 20) | (imm & 31) << 7 | imm >> 5 << 25
}

pub(crate) fn b_type(bits: u32, rs1: u8, rs2: u8, offset: i32) -> u32 {
    let imm = offset.cast_unsigned();
    let low = (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7;
    let high = (imm >> 5 & 63) << 25 | (imm >> 12 & 1) << 31;
    bits | field(rs1, 15) | field(rs2, 20) | low | high
}

pub(crate) fn j_type(bits: u32, rd: u8, offset: i32) -> u32 {
    let imm = offset.cast_unsigned();
    let low = (imm >> 12 & 0xff) << 12 | (imm >> 11 & 1) << 20;
    bits | field(rd, 7) | low | (imm >> 1 & 0x3ff) << 21 | (imm >> 20 & 1) << 31
}

macro_rules! registers {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " rd, rs1, rs2`")]
        pub fn $name(rd: u8, rs1: u8, rs2: u8) -> u32 {
            r_type($bits, rd, rs1, rs2)
        }
    )*};
}

registers! {
    add 0x33
    sub 0x4000_0033
    sll 0x1033
    slt 0x2033
    sltu 0x3033
    xor 0x4033
    srl 0x5033
    sra 0x4000_5033
    or 0x6033
    and 0x7033
    addw 0x3b
    subw 0x4000_003b
    mul 0x0200_0033
    mulhu 0x0200_3033
    div 0x0200_4033
    divu 0x0200_5033
    rem 0x0200_6033
    remu 0x0200_7033
}

macro_rules! immediates {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " rd, rs1, imm`")]
        pub fn $name(rd: u8, rs1: u8, imm: i32) -> u32 {
            i_type($bits, rd, rs1, imm)
        }
    )*};
}

immediates! {
    addi 0x13
    slti 0x2013
    sltiu 0x3013
    xori 0x4013
    ori 0x6013
    andi 0x7013
    slli 0x1013
    srli 0x5013
    addiw 0x1b
}

/// `srai rd, rs1, shift`
pub fn srai(rd: u8, rs1: u8, shift: i32) -> u32 {
    i_type(0x5013, rd, rs1, shift | 0x400)
}

macro_rules! loads {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " rd, offset(base)`")]
        pub fn $name(rd: u8, offset: i32, base: u8) -> u32 {
            i_type($bits, rd, base, offset)
        }
    )*};
}

loads! {
    lb 0x03
    lh 0x1003
    lw 0x2003
    ld 0x3003
    lbu 0x4003
    lhu 0x5003
    lwu 0x6003
    jalr 0x67
}

macro_rules! stores {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " source, offset(base)`")]
        pub fn $name(source: u8, offset: i32, base: u8) -> u32 {
            s_type($bits, source, base, offset)
        }
    )*};
}

stores! {
    sb 0x23
    sh 0x1023
    sw 0x2023
    sd 0x3023
}

macro_rules! atomics {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " rd, rs2, (base)`, with `aq` and `rl`")]
        pub fn $name(rd: u8, rs2: u8, base: u8) -> u32 {
            r_type($bits, rd, base, rs2)
        }
    )*};
}

atomics! {
    sc_w 0x1e00_202f
    sc_d 0x1e00_302f
    amoswap_w 0x0e00_202f
    amoadd_w 0x0600_202f
    amoadd_d 0x0600_302f
}

/// `lr.w rd, (base)`, with `aq` and `rl`
pub fn lr_w(rd: u8, base: u8) -> u32 {
    r_type(0x1600_202f, rd, base, 0)
}

/// `lr.d rd, (base)`, with `aq` and `rl`
pub fn lr_d(rd: u8, base: u8) -> u32 {
    r_type(0x1600_302f, rd, base, 0)
}

/// `lui rd, imm`: `imm` is shifted to the left by 12 bits.
pub fn lui(rd: u8, imm: i32) -> u32 {
    0x37 | field(rd, 7) | imm.cast_unsigned() << 12
}

/// `auipc rd, imm`: `imm` is shifted to the left by 12 bits.
pub fn auipc(rd: u8, imm: i32) -> u32 {
    0x17 | field(rd, 7) | imm.cast_unsigned() << 12
}

macro_rules! csrs {
    ($($name:ident $bits:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), " rd, csr, rs1`")]
        pub fn $name(rd: u8, csr: u16, rs1: u8) -> u32 {
            i_type($bits, rd, rs1, csr.into())
        }
    )*};
}

csrs! {
    csrrw 0x1073
    csrrs 0x2073
    csrrc 0x3073
    csrrwi 0x5073
    csrrsi 0x6073
    csrrci 0x7073
}

/// `ecall`
pub const ECALL: u32 = 0x0000_0073;
/// `ebreak`
pub const EBREAK: u32 = 0x0010_0073;
/// `mret`
pub const MRET: u32 = 0x3020_0073;
/// `wfi`
pub const WFI: u32 = 0x1050_0073;
/// `fence rw, rw`
pub const FENCE: u32 = 0x0330_000f;
/// `fence.i`
pub const FENCE_I: u32 = 0x0000_100f;
/// `nop`
pub const NOP: u32 = 0x0000_0013;

/// CSRs by their numbers (privileged ISA manual, "CSR Listing").
#[allow(missing_docs)] // the manual's names
pub mod csr {
    pub const MSTATUS: u16 = 0x300;
    pub const MIE: u16 = 0x304;
    pub const MTVEC: u16 = 0x305;
    pub const MCOUNTEREN: u16 = 0x306;
    pub const MSCRATCH: u16 = 0x340;
    pub const MEPC: u16 = 0x341;
    pub const MCAUSE: u16 = 0x342;
    pub const MTVAL: u16 = 0x343;
    pub const MIP: u16 = 0x344;
    pub const PMPCFG0: u16 = 0x3a0;
    pub const PMPADDR0: u16 = 0x3b0;
    pub const MHARTID: u16 = 0xf14;
    pub const CYCLE: u16 = 0xc00;
    pub const TIME: u16 = 0xc01;
    pub const INSTRET: u16 = 0xc02;
}

/// Registers by the names of the calling convention.
#[allow(missing_docs)] // the convention's names
pub mod reg {
    pub const ZERO: u8 = 0;
    pub const RA: u8 = 1;
    pub const SP: u8 = 2;
    pub const T0: u8 = 5;
    pub const T1: u8 = 6;
    pub const T2: u8 = 7;
    pub const S0: u8 = 8;
    pub const S1: u8 = 9;
    pub const A0: u8 = 10;
    pub const A1: u8 = 11;
    pub const A2: u8 = 12;
    pub const A3: u8 = 13;
    pub const A4: u8 = 14;
    pub const A5: u8 = 15;
    pub const A6: u8 = 16;
    pub const A7: u8 = 17;
    pub const S2: u8 = 18;
    pub const S3: u8 = 19;
    pub const S4: u8 = 20;
    pub const S5: u8 = 21;
    pub const S6: u8 = 22;
    pub const S7: u8 = 23;
    pub const S8: u8 = 24;
    pub const S9: u8 = 25;
    pub const S10: u8 = 26;
    pub const S11: u8 = 27;
    pub const T3: u8 = 28;
    pub const T4: u8 = 29;
    pub const T5: u8 = 30;
    pub const T6: u8 = 31;
}
