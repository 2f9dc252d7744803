//! Random programs, a few dozen instructions each, that cannot leave their window of memory.

use rv64::assemble::{ECALL, FENCE_I, addi, addiw, auipc, lui, lw, sw};
use rv64::{Kind, Op, SINK, decode};

/// Registers that point into the window and are never written.
pub const BASES: [u8; 3] = [2, 9, 30];
/// Bytes of a window; its middle is at half of them.
pub const WINDOW: u64 = 2048;

/// Random numbers: SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    fn bits(&mut self, count: u32) -> u32 {
        u32::try_from(self.next() >> 32).unwrap() & ((1 << count) - 1)
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }

    /// A register's value: at the edges of sizes more often than not.
    pub fn value(&mut self) -> u64 {
        let random = self.next();
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 63,
            3 => random & 0xff,
            4 => 0xffff_ffff_8000_0000,
            5 => random & 0xffff_ffff,
            _ => random,
        }
    }

    fn source(&mut self) -> u32 {
        self.bits(5)
    }

    fn destination(&mut self) -> u32 {
        loop {
            let register = self.bits(5);
            if !BASES.iter().any(|base| u32::from(*base) == register) {
                return register;
            }
        }
    }

    fn base(&mut self) -> u32 {
        self.of(&BASES).into()
    }
}

fn register_register(random: &mut Random) -> u32 {
    let (double, word) = (0x33, 0x3b);
    let doubles = (0..8).flat_map(|funct3| [(0, funct3, double), (1, funct3, double)]);
    let words = [0, 1, 5].map(|funct3| (0, funct3, word)).into_iter();
    let more = [(0x20, 0, double), (0x20, 5, double), (0x20, 0, word), (0x20, 5, word)];
    let products = [0, 4, 5, 6, 7].map(|funct3| (1, funct3, word));
    let all: Vec<(u32, u32, u32)> = doubles.chain(words).chain(more).chain(products).collect();
    let (funct7, funct3, opcode) = random.of(&all);
    let registers = random.source() << 20 | random.source() << 15 | random.destination() << 7;
    funct7 << 25 | registers | funct3 << 12 | opcode
}

fn immediate(random: &mut Random) -> u32 {
    let registers = random.source() << 15 | random.destination() << 7;
    let shift = random.bits(6) << 20;
    let word_shift = random.bits(5) << 20;
    let right = random.of(&[0, 1 << 30]);
    registers
        | match random.below(7) {
            0 => shift | 0x1013,
            1 => shift | right | 0x5013,
            2 => word_shift | 0x101b,
            3 => word_shift | right | 0x501b,
            4 => random.bits(12) << 20 | 0x1b,
            _ => random.bits(12) << 20 | random.of(&[0, 2, 3, 4, 6, 7]) << 12 | 0x13,
        }
}

fn offset(random: &mut Random) -> i32 {
    i32::try_from(random.below(1800)).unwrap() - 900
}

fn load(random: &mut Random) -> u32 {
    let funct3 = u32::try_from(random.below(7)).unwrap();
    let registers = random.base() << 15 | random.destination() << 7;
    offset(random).cast_unsigned() << 20 | registers | funct3 << 12 | 0x03
}

fn store(random: &mut Random) -> u32 {
    let offset = offset(random).cast_unsigned();
    let immediate = offset >> 5 << 25 | (offset & 31) << 7;
    immediate | random.source() << 20 | random.base() << 15 | random.bits(2) << 12 | 0x23
}

fn amo(random: &mut Random) -> u32 {
    let funct5 = random.of(&[0, 1, 4, 8, 12, 16, 20, 24, 28]);
    let registers = random.source() << 20 | random.base() << 15 | random.destination() << 7;
    let size = random.of(&[2, 2, 3]) << 12;
    funct5 << 27 | random.bits(2) << 25 | registers | size | 0x2f
}

/// `lr`, perhaps something between, and `sc` of the same size; not always to the same place.
fn conditional(random: &mut Random, code: &mut Vec<u8>) {
    let size = random.of(&[2, 2, 3]) << 12;
    let base = random.base();
    word(code, 2 << 27 | base << 15 | random.destination() << 7 | size | 0x2f);
    match random.below(4) {
        0 => word(code, store(random)),
        1 => word(code, immediate(random)),
        _ => {}
    }
    // QEMU lets a conditional store fail that is neither reserved nor aligned; the manual wants an
    // exception: so none of these.
    let other = if random.below(4) == 0 { random.of(&BASES[..2]).into() } else { base };
    let registers = random.source() << 20 | other << 15 | random.destination() << 7;
    word(code, 3 << 27 | registers | size | 0x2f);
}

/// One of Zicsr, of registers that the runner does not need.
fn csr(random: &mut Random) -> u32 {
    let number = random.of(&[0x343, 0x343, 0x7ff]);
    let funct3 = random.of(&[1, 2, 3, 5, 6, 7]);
    number << 20 | random.source() << 15 | funct3 << 12 | random.destination() << 7 | 0x73
}

/// Whether a compressed instruction neither leaves the window nor the program.
fn stays(op: Op) -> bool {
    use Kind::*;
    let is_memory = matches!(op.kind, Lw | Ld | Sw | Sd);
    let keeps = op.rd == SINK || !BASES.contains(&op.rd);
    let leaves = matches!(op.kind, Jal | Jalr | Beq | Bne | Ebreak | Illegal);
    keeps && !leaves && (!is_memory || op.rs1 == 2 || op.rs1 == 9)
}

fn compressed(random: &mut Random) -> u16 {
    loop {
        let parcel = u16::try_from(random.bits(16)).unwrap();
        if parcel & 3 != 3 && stays(decode(parcel.into())) {
            return parcel;
        }
    }
}

/// What is no instruction of RV64IMAC.
fn illegal(random: &mut Random) -> Vec<u8> {
    loop {
        let bits = random.bits(31) << 1 | random.bits(1);
        let op = decode(bits);
        if op.kind == Kind::Illegal {
            return bits.to_le_bytes()[..op.len.into()].to_vec();
        }
    }
}

fn word(code: &mut Vec<u8>, word: u32) {
    code.extend(word.to_le_bytes());
}

/// A branch or jump over a few instructions.
fn skip(random: &mut Random, code: &mut Vec<u8>) {
    let mut inner = Vec::new();
    for _ in 0..=random.below(3) {
        item(random, &mut inner);
    }
    let distance = u32::try_from(inner.len()).unwrap();
    let (long, short) = (distance + 4, distance + 2);
    let branch = (long >> 1 & 15) << 8 | (long >> 5 & 63) << 25;
    match random.below(4) {
        0 => word(code, (long >> 1) << 21 | random.destination() << 7 | 0x6f),
        1 if short < 256 => {
            let offset = (short >> 3 & 3) << 10
                | (short >> 6 & 3) << 5
                | (short >> 1 & 3) << 3
                | (short >> 5 & 1) << 2;
            let parcel = random.of(&[0xc001, 0xe001]) | random.bits(3) << 7 | offset;
            code.extend(u16::try_from(parcel).unwrap().to_le_bytes());
        }
        _ => {
            let funct3 = random.of(&[0, 1, 4, 5, 6, 7]);
            let registers = random.source() << 20 | random.source() << 15;
            word(code, branch | registers | funct3 << 12 | 0x63);
        }
    }
    code.extend(inner);
}

/// Changes an instruction that comes later, and then executes it.
fn patch(random: &mut Random, code: &mut Vec<u8>) {
    let new = register_register(random).cast_signed();
    let (pointer, value) = (31, 29);
    // Where this begins.
    word(code, auipc(pointer, 0));
    let upper = (new >> 12) + (new >> 11 & 1);
    word(code, lui(value, upper));
    word(code, addiw(value, value, new << 20 >> 20));
    word(code, sw(value, 24, pointer));
    word(code, FENCE_I);
    word(code, lw(value, 24, pointer));
    word(code, addi(28, 28, 1)); // replaced
}

fn item(random: &mut Random, code: &mut Vec<u8>) {
    match random.below(32) {
        0..8 => word(code, register_register(random)),
        8..12 => word(code, immediate(random)),
        12 => word(code, random.bits(20) << 12 | random.destination() << 7 | 0x37),
        13 => word(code, random.bits(20) << 12 | random.destination() << 7 | 0x17),
        14..17 => word(code, load(random)),
        17..20 => word(code, store(random)),
        20 => word(code, amo(random)),
        21 => conditional(random, code),
        22 if random.below(4) == 0 => word(code, csr(random)),
        23..29 => code.extend(compressed(random).to_le_bytes()),
        _ => skip(random, code),
    }
}

/// A program; what follows it in memory is an `ebreak`.
pub fn program(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..8 + random.below(24) {
        item(random, &mut code);
    }
    match random.below(16) {
        0 => code.extend(illegal(random)),
        1 => word(&mut code, ECALL),
        2..5 => patch(random, &mut code),
        _ => {}
    }
    code
}
