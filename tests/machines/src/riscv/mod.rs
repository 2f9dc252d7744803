//! A small RV32I emulator whose translator watches the pages that it has decoded.
//!
//! Instructions are decoded a block at a time and kept. [`CodeWatch`](ram_block::CodeWatch) tells
//! when a page
//! with decoded blocks is written, by the program itself or by anybody else; without the
//! cache every instruction is decoded when it is executed, which is what the cache is
//! tested against.

mod cache;
mod decode;

pub mod assemble;

use std::sync::Arc;

use ram_block::vm_memory::Bytes;
use ram_block::{DirtyError, RamBlock, RamSlice};

use cache::Cache;
pub use cache::Invalidation;
use decode::{Alu, Condition, Instruction, Width};

/// Why the processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `ecall` at this address.
    Call(u32),
    /// `ebreak` at this address.
    Break(u32),
    /// No instruction of RV32I at this address.
    Illegal(u32),
    /// A jump to an address that is no multiple of four.
    Misaligned(u32),
    /// An access outside of memory at this address.
    Fault(u32),
    /// As many instructions as were asked for.
    Steps,
}

/// One hart; memory starts at guest address 0.
#[derive(Debug)]
pub struct Cpu {
    ram: Arc<RamBlock>,
    /// x0 to x31; x0 stays zero.
    pub registers: [u32; 32],
    /// The address of the next instruction.
    pub pc: u32,
    cache: Option<Cache>,
}

impl Cpu {
    /// A hart that decodes each instruction when it executes it.
    pub fn decoding(ram: Arc<RamBlock>) -> Self {
        Self { ram, registers: [0; 32], pc: 0, cache: None }
    }

    /// A hart that keeps decoded blocks, until they are written or, without
    /// `invalidation`, for ever.
    ///
    /// # Errors
    ///
    /// [`DirtyError::Watched`] if another hart watches the block.
    pub fn caching(ram: Arc<RamBlock>, invalidation: Invalidation) -> Result<Self, DirtyError> {
        let cache = Some(Cache::new(&ram, invalidation)?);
        Ok(Self { ram, registers: [0; 32], pc: 0, cache })
    }

    /// How many blocks were decoded to be kept.
    pub fn blocks_decoded(&self) -> u64 {
        self.cache.as_ref().map_or(0, Cache::decoded)
    }

    /// Executes `steps` instructions unless something stops the hart before.
    pub fn run(&mut self, steps: u64) -> Stop {
        let mut left = steps;
        while left > 0 {
            if let Err(stop) = self.run_block(&mut left) {
                return stop;
            }
        }
        Stop::Steps
    }

    /// Executes instructions that follow each other, as long as they are current.
    fn run_block(&mut self, left: &mut u64) -> Result<(), Stop> {
        let ram = self.ram.clone();
        let memory = ram.as_slice();
        let Some(cache) = &mut self.cache else {
            *left -= 1;
            let word = fetch(&memory, self.pc)?;
            return self.execute(&memory, decode::decode(word));
        };
        let block = cache.block(&memory, self.pc)?;
        for instruction in block.instructions() {
            if *left == 0 {
                return Ok(());
            }
            *left -= 1;
            let next = self.pc.wrapping_add(4);
            self.execute(&memory, *instruction)?;
            // A jump leaves the block, and so does a store to it.
            if self.pc != next || !block.is_current() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn set(&mut self, register: u8, value: u32) {
        if register != 0 {
            self.registers[usize::from(register)] = value;
        }
    }

    fn get(&self, register: u8) -> u32 {
        self.registers[usize::from(register)]
    }

    fn jump(&mut self, target: u32) -> Result<(), Stop> {
        if !target.is_multiple_of(4) {
            return Err(Stop::Misaligned(target));
        }
        self.pc = target;
        Ok(())
    }

    fn execute(&mut self, memory: &RamSlice<'_>, instruction: Instruction) -> Result<(), Stop> {
        let next = self.pc.wrapping_add(4);
        match instruction {
            Instruction::Load { width, signed, rd, base, offset } => {
                let value = load(memory, self.get(base).wrapping_add(offset), width, signed)?;
                self.set(rd, value);
            }
            Instruction::Store { width, source, base, offset } => {
                store(memory, self.get(base).wrapping_add(offset), width, self.get(source))?;
            }
            Instruction::Immediate { rd, value } => self.set(rd, value),
            Instruction::PcRelative { rd, offset } => self.set(rd, self.pc.wrapping_add(offset)),
            Instruction::AluImmediate { alu, rd, rs1, value } => {
                self.set(rd, compute(alu, self.get(rs1), value));
            }
            Instruction::Alu { alu, rd, rs1, rs2 } => {
                self.set(rd, compute(alu, self.get(rs1), self.get(rs2)));
            }
            Instruction::Branch { condition, rs1, rs2, offset } => {
                if holds(condition, self.get(rs1), self.get(rs2)) {
                    return self.jump(self.pc.wrapping_add(offset));
                }
            }
            Instruction::Jump { rd, offset } => {
                self.jump(self.pc.wrapping_add(offset))?;
                self.set(rd, next);
                return Ok(());
            }
            Instruction::JumpRegister { rd, base, offset } => {
                self.jump(self.get(base).wrapping_add(offset) & !1)?;
                self.set(rd, next);
                return Ok(());
            }
            Instruction::Fence => {}
            Instruction::Call => return Err(Stop::Call(self.pc)),
            Instruction::Break => return Err(Stop::Break(self.pc)),
            Instruction::Illegal => return Err(Stop::Illegal(self.pc)),
        }
        self.pc = next;
        Ok(())
    }
}

/// The instruction word at `pc`.
fn fetch(memory: &RamSlice<'_>, pc: u32) -> Result<u32, Stop> {
    memory.read_obj::<u32>(pc as usize).map(u32::from_le).map_err(|_| Stop::Fault(pc))
}

fn load(memory: &RamSlice<'_>, at: u32, width: Width, signed: bool) -> Result<u32, Stop> {
    let mut bytes = [0; 4];
    let width = width.bytes();
    memory.read_slice(&mut bytes[..width], at as usize).map_err(|_| Stop::Fault(at))?;
    let value = u32::from_le_bytes(bytes);
    let unused = u32::try_from(32 - 8 * width).unwrap_or(0);
    Ok(if signed { ((value << unused).cast_signed() >> unused).cast_unsigned() } else { value })
}

fn store(memory: &RamSlice<'_>, at: u32, width: Width, value: u32) -> Result<(), Stop> {
    // vm-memory's slice marks the page, which reports it to the translator.
    let bytes = &value.to_le_bytes()[..width.bytes()];
    memory.write_slice(bytes, at as usize).map_err(|_| Stop::Fault(at))
}

fn compute(alu: Alu, a: u32, b: u32) -> u32 {
    match alu {
        Alu::Add => a.wrapping_add(b),
        Alu::Subtract => a.wrapping_sub(b),
        Alu::ShiftLeft => a << (b & 31),
        Alu::Less => u32::from(a.cast_signed() < b.cast_signed()),
        Alu::LessUnsigned => u32::from(a < b),
        Alu::Xor => a ^ b,
        Alu::ShiftRight => a >> (b & 31),
        Alu::ShiftRightSigned => (a.cast_signed() >> (b & 31)).cast_unsigned(),
        Alu::Or => a | b,
        Alu::And => a & b,
    }
}

fn holds(condition: Condition, a: u32, b: u32) -> bool {
    match condition {
        Condition::Equal => a == b,
        Condition::NotEqual => a != b,
        Condition::Less => a.cast_signed() < b.cast_signed(),
        Condition::GreaterEqual => a.cast_signed() >= b.cast_signed(),
        Condition::LessUnsigned => a < b,
        Condition::GreaterEqualUnsigned => a >= b,
    }
}
