//! A small machine of registers and memory, and programs as its guests.

use crate::contestants::{BASE, Memory};

/// Where code is, if it is fetched from memory, and where the stack ends.
const CODE: u64 = BASE;
const STACK: u64 = BASE + 0x10_0000;
/// Where the programs' data is.
pub const DATA: u64 = BASE + 0x20_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Immediate,
    Add,
    AddImmediate,
    ShiftLeft,
    Load,
    Store,
    BranchLess,
    BranchGreaterEqual,
    BranchEqual,
    Jump,
    Call,
    Return,
    Halt,
}

const OPERATIONS: [Operation; 13] = [
    Operation::Immediate,
    Operation::Add,
    Operation::AddImmediate,
    Operation::ShiftLeft,
    Operation::Load,
    Operation::Store,
    Operation::BranchLess,
    Operation::BranchGreaterEqual,
    Operation::BranchEqual,
    Operation::Jump,
    Operation::Call,
    Operation::Return,
    Operation::Halt,
];

/// `d`, `a` and `b` are registers.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    operation: Operation,
    d: u8,
    a: u8,
    b: u8,
    immediate: i32,
}

impl Instruction {
    fn encode(self) -> u64 {
        let operation = OPERATIONS.iter().position(|other| *other == self.operation).unwrap_or(0);
        let [b0, b1, b2, b3] = self.immediate.to_le_bytes();
        let operation = u8::try_from(operation).unwrap_or(0);
        u64::from_le_bytes([operation, self.d, self.a, self.b, b0, b1, b2, b3])
    }

    #[inline(always)]
    fn decode(word: u64) -> Self {
        let [operation, d, a, b, immediate @ ..] = word.to_le_bytes();
        let operation = *OPERATIONS.get(usize::from(operation)).unwrap_or(&Operation::Halt);
        Self { operation, d, a, b, immediate: i32::from_le_bytes(immediate) }
    }
}

/// A program's instructions; places in it are numbers of instructions.
#[derive(Default)]
pub struct Program(pub Vec<Instruction>);

impl Program {
    fn here(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap()
    }

    fn put(&mut self, operation: Operation, d: u8, a: u8, b: u8, immediate: i32) -> usize {
        self.0.push(Instruction { operation, d, a, b, immediate });
        self.0.len() - 1
    }

    /// Makes a branch or jump lead to the next instruction.
    fn land(&mut self, from: usize) {
        self.0[from].immediate = self.here();
    }
}

use Operation::*;

const SP: u8 = 14;
/// The register that has [`DATA`] at first.
const BASE_REGISTER: u8 = 13;

/// Data for `words` words at first: all different, in no order.
fn mixed(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// A program, its name, and how many words of data it has.
pub struct Guest {
    pub name: &'static str,
    pub program: Program,
    words: u64,
}

fn guest(name: &'static str, words: u64, write: impl FnOnce(&mut Program)) -> Guest {
    let mut program = Program::default();
    write(&mut program);
    Guest { name, program, words }
}

pub fn guests() -> Vec<Guest> {
    vec![
        guest("memset", 8192, |p| {
            p.put(AddImmediate, 1, BASE_REGISTER, 0, 0);
            p.put(AddImmediate, 2, BASE_REGISTER, 0, 8 * 8192);
            let again = p.here();
            p.put(Store, 0, 1, 3, 0);
            p.put(AddImmediate, 1, 1, 0, 8);
            p.put(BranchLess, 0, 1, 2, again);
            p.put(Halt, 0, 0, 0, 0);
        }),
        guest("memcpy", 8192, |p| {
            p.put(AddImmediate, 1, BASE_REGISTER, 0, 0);
            p.put(AddImmediate, 2, BASE_REGISTER, 0, 8 * 4096);
            p.put(AddImmediate, 4, BASE_REGISTER, 0, 8 * 4096);
            let again = p.here();
            p.put(Load, 3, 1, 0, 0);
            p.put(Store, 0, 4, 3, 0);
            p.put(AddImmediate, 1, 1, 0, 8);
            p.put(AddImmediate, 4, 4, 0, 8);
            p.put(BranchLess, 0, 1, 2, again);
            p.put(Halt, 0, 0, 0, 0);
        }),
        guest("quick sort", 2048, |p| {
            p.put(AddImmediate, 1, BASE_REGISTER, 0, 0);
            p.put(AddImmediate, 2, BASE_REGISTER, 0, 8 * 2047);
            let start = p.put(Call, 0, 0, 0, 0);
            p.put(Halt, 0, 0, 0, 0);
            // Sorts from the word at r1 to that at r2.
            p.land(start);
            let sort = p.here();
            let one = p.put(BranchGreaterEqual, 0, 1, 2, 0);
            p.put(Load, 3, 2, 0, 0); // pivot
            p.put(AddImmediate, 4, 1, 0, 0); // the next place of a lesser word
            p.put(AddImmediate, 5, 1, 0, 0);
            let each = p.here();
            p.put(Load, 6, 5, 0, 0);
            let greater = p.put(BranchGreaterEqual, 0, 6, 3, 0);
            p.put(Load, 7, 4, 0, 0);
            p.put(Store, 0, 4, 6, 0);
            p.put(Store, 0, 5, 7, 0);
            p.put(AddImmediate, 4, 4, 0, 8);
            p.land(greater);
            p.put(AddImmediate, 5, 5, 0, 8);
            p.put(BranchLess, 0, 5, 2, each);
            p.put(Load, 7, 4, 0, 0);
            p.put(Store, 0, 4, 3, 0);
            p.put(Store, 0, 2, 7, 0);
            p.put(AddImmediate, SP, SP, 0, -16);
            p.put(Store, 0, SP, 2, 0);
            p.put(Store, 0, SP, 4, 8);
            p.put(AddImmediate, 2, 4, 0, -8);
            p.put(Call, 0, 0, 0, sort);
            p.put(Load, 2, SP, 0, 0);
            p.put(Load, 4, SP, 0, 8);
            p.put(AddImmediate, SP, SP, 0, 16);
            p.put(AddImmediate, 1, 4, 0, 8);
            p.put(Call, 0, 0, 0, sort);
            p.land(one);
            p.put(Return, 0, 0, 0, 0);
        }),
        guest("sieve", 8192, |p| {
            p.put(Immediate, 1, 0, 0, 2);
            p.put(Immediate, 2, 0, 0, 8192);
            p.put(Immediate, 3, 0, 0, -1);
            let each = p.here();
            p.put(ShiftLeft, 4, 1, 0, 3);
            p.put(Add, 4, 4, BASE_REGISTER, 0);
            p.put(Load, 5, 4, 0, 0);
            let crossed = p.put(BranchEqual, 0, 5, 3, 0);
            p.put(Add, 6, 1, 1, 0);
            let many = p.put(BranchGreaterEqual, 0, 6, 2, 0);
            let multiple = p.here();
            p.put(ShiftLeft, 7, 6, 0, 3);
            p.put(Add, 7, 7, BASE_REGISTER, 0);
            p.put(Store, 0, 7, 3, 0);
            p.put(Add, 6, 6, 1, 0);
            p.put(BranchLess, 0, 6, 2, multiple);
            p.land(crossed);
            p.land(many);
            p.put(AddImmediate, 1, 1, 0, 1);
            p.put(BranchLess, 0, 1, 2, each);
            p.put(Halt, 0, 0, 0, 0);
        }),
        guest("fib", 1, |p| {
            p.put(Immediate, 1, 0, 0, 18);
            let start = p.put(Call, 0, 0, 0, 0);
            p.put(Store, 0, BASE_REGISTER, 2, 0);
            p.put(Halt, 0, 0, 0, 0);
            // r2 becomes the Fibonacci number of r1.
            p.land(start);
            let fib = p.here();
            p.put(Immediate, 3, 0, 0, 2);
            let deep = p.put(BranchGreaterEqual, 0, 1, 3, 0);
            p.put(AddImmediate, 2, 1, 0, 0);
            p.put(Return, 0, 0, 0, 0);
            p.land(deep);
            p.put(AddImmediate, SP, SP, 0, -16);
            p.put(Store, 0, SP, 1, 0);
            p.put(AddImmediate, 1, 1, 0, -1);
            p.put(Call, 0, 0, 0, fib);
            p.put(Load, 1, SP, 0, 0);
            p.put(Store, 0, SP, 2, 8);
            p.put(AddImmediate, 1, 1, 0, -2);
            p.put(Call, 0, 0, 0, fib);
            p.put(Load, 3, SP, 0, 8);
            p.put(AddImmediate, SP, SP, 0, 16);
            p.put(Add, 2, 2, 3, 0);
            p.put(Return, 0, 0, 0, 0);
        }),
    ]
}

impl Guest {
    /// Puts code and data into memory.
    pub fn load<M: Memory>(&self, memory: &mut M) {
        for (n, instruction) in (0..).zip(&self.program.0) {
            memory.store(CODE + n * 8, instruction.encode()).unwrap();
        }
        (0..self.words).for_each(|n| memory.store(DATA + n * 8, mixed(n)).unwrap());
    }

    /// A sum of the data, by which places count.
    pub fn sum<M: Memory>(&self, memory: &mut M) -> u64 {
        let word = |n| memory.load(DATA + n * 8).unwrap();
        (0..self.words).map(word).fold(0, |sum: u64, word| sum.rotate_left(5).wrapping_add(word))
    }
}

/// Runs a program that was decoded before; returns how many instructions it had.
#[inline(never)]
pub fn run_decoded<M: Memory>(memory: &mut M, program: &[Instruction]) -> Option<u64> {
    run(memory, |_, pc| program.get(pc).copied())
}

/// Runs a program from memory, decoding each instruction as it comes.
#[inline(never)]
pub fn run_encoded<M: Memory>(memory: &mut M) -> Option<u64> {
    run(memory, |memory, pc| Some(Instruction::decode(memory.fetch(CODE + pc as u64 * 8)?)))
}

#[inline(always)]
fn run<M: Memory>(
    memory: &mut M,
    fetch: impl Fn(&mut M, usize) -> Option<Instruction>,
) -> Option<u64> {
    let mut registers = [0u64; 16];
    registers[usize::from(SP)] = STACK;
    registers[usize::from(BASE_REGISTER)] = DATA;
    let (mut pc, mut count) = (0usize, 0);
    loop {
        let Instruction { operation, d, a, b, immediate } = fetch(memory, pc)?;
        let [x, y] = [a, b].map(|register| registers[usize::from(register & 15)]);
        let d = &mut registers[usize::from(d & 15)];
        let offset = i64::from(immediate).cast_unsigned();
        let target = usize::try_from(immediate);
        count += 1;
        pc += 1;
        match operation {
            Immediate => *d = offset,
            Add => *d = x.wrapping_add(y),
            AddImmediate => *d = x.wrapping_add(offset),
            ShiftLeft => *d = x << (immediate & 63),
            Load => *d = memory.load(x.wrapping_add(offset))?,
            Store => memory.store(x.wrapping_add(offset), y)?,
            BranchLess if x < y => pc = target.ok()?,
            BranchGreaterEqual if x >= y => pc = target.ok()?,
            BranchEqual if x == y => pc = target.ok()?,
            BranchLess | BranchGreaterEqual | BranchEqual => {}
            Jump => pc = target.ok()?,
            Call => {
                let sp = &mut registers[usize::from(SP)];
                *sp = sp.wrapping_sub(8);
                memory.store(*sp, pc as u64)?;
                pc = target.ok()?;
            }
            Return => {
                let sp = &mut registers[usize::from(SP)];
                pc = usize::try_from(memory.load(*sp)?).ok()?;
                *sp = sp.wrapping_add(8);
            }
            Halt => return Some(count),
        }
    }
}
