//! The instructions that test programs need, as words.

fn register(number: u8) -> u32 {
    u32::from(number & 31)
}

fn i_type(opcode: u32, function: u32, rd: u8, rs1: u8, immediate: i32) -> u32 {
    let immediate = immediate.cast_unsigned() << 20;
    immediate | register(rs1) << 15 | function << 12 | register(rd) << 7 | opcode
}

/// `addi rd, rs1, immediate`
pub fn addi(rd: u8, rs1: u8, immediate: i32) -> u32 {
    i_type(0x13, 0, rd, rs1, immediate)
}

/// `lw rd, offset(base)`
pub fn lw(rd: u8, base: u8, offset: i32) -> u32 {
    i_type(0x03, 2, rd, base, offset)
}

/// `jalr rd, offset(base)`
pub fn jalr(rd: u8, base: u8, offset: i32) -> u32 {
    i_type(0x67, 0, rd, base, offset)
}

/// `sw source, offset(base)`
pub fn sw(source: u8, base: u8, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 5 & 0x7f) << 25
        | register(source) << 20
        | register(base) << 15
        | 2 << 12
        | (offset & 0x1f) << 7
        | 0x23
}

/// `add rd, rs1, rs2`
pub fn add(rd: u8, rs1: u8, rs2: u8) -> u32 {
    register(rs2) << 20 | register(rs1) << 15 | register(rd) << 7 | 0x33
}

/// `lui rd, value >> 12`
pub fn lui(rd: u8, value: u32) -> u32 {
    value & !0xfff | register(rd) << 7 | 0x37
}

fn branch(function: u32, rs1: u8, rs2: u8, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 12 & 1) << 31
        | (offset >> 5 & 0x3f) << 25
        | register(rs2) << 20
        | register(rs1) << 15
        | function << 12
        | (offset >> 1 & 0xf) << 8
        | (offset >> 11 & 1) << 7
        | 0x63
}

/// `beq rs1, rs2, . + offset`
pub fn beq(rs1: u8, rs2: u8, offset: i32) -> u32 {
    branch(0, rs1, rs2, offset)
}

/// `bne rs1, rs2, . + offset`
pub fn bne(rs1: u8, rs2: u8, offset: i32) -> u32 {
    branch(1, rs1, rs2, offset)
}

/// `jal rd, . + offset`
pub fn jal(rd: u8, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 20 & 1) << 31
        | (offset >> 1 & 0x3ff) << 21
        | (offset >> 11 & 1) << 20
        | (offset >> 12 & 0xff) << 12
        | register(rd) << 7
        | 0x6f
}

/// `ecall`
pub const ECALL: u32 = 0x73;
