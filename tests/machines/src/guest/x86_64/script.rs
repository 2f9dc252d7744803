//! A guest that does what a list says: accesses of ports and of memory, one after the other.
//!
//! So what a driver does can be written down once, and be done by a guest's own instructions on
//! any machine of this kind, ours or another one.

use std::cell::RefCell;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::guest::{CODE, DATA};

const END: u32 = 0;
const OUT8: u32 = 1;
const OUT16: u32 = 2;
const OUT32: u32 = 3;
const IN8: u32 = 4;
const READ: u32 = 5;
const WRITE: u32 = 6;

/// Where the guest says that it has come to the end, by [`DONE`]: past its code.
pub const MARK: u64 = CODE + 0x8000;
/// What it says then.
pub const DONE: u32 = 0x656e_6f64;

/// Accesses, to be made by a guest in their order. What is read is thrown away.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// For each access three words: what, where, and a value or a number of bytes; then the
    /// bytes, filled up to whole words.
    list: RefCell<Vec<u8>>,
}

impl Script {
    fn step(&self, what: u32, place: u32, value: u32) {
        let words = [what, place, value].map(u32::to_le_bytes);
        self.list.borrow_mut().extend(words.as_flattened());
    }

    /// Writes 8 bits to a port.
    pub fn out8(&self, port: u16, value: u8) {
        self.step(OUT8, port.into(), value.into());
    }

    /// Writes 16 bits to a port.
    pub fn out16(&self, port: u16, value: u16) {
        self.step(OUT16, port.into(), value.into());
    }

    /// Writes 32 bits to a port.
    pub fn out32(&self, port: u16, value: u32) {
        self.step(OUT32, port.into(), value);
    }

    /// Reads 8 bits of a port.
    pub fn in8(&self, port: u16) {
        self.step(IN8, port.into(), 0);
    }

    /// Reads a byte below 4 GiB.
    ///
    /// # Panics
    ///
    /// If it lies above.
    pub fn read(&self, address: u64) {
        self.step(READ, below_4_gib(address), 0);
    }

    /// Writes bytes below 4 GiB, four at a time.
    ///
    /// # Panics
    ///
    /// If they lie above.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let count = bytes.len();
        self.step(WRITE, below_4_gib(address), u32::try_from(count).expect("a short list"));
        let mut list = self.list.borrow_mut();
        list.extend(bytes);
        let whole = list.len().next_multiple_of(4);
        list.resize(whole, 0);
    }

    /// The list as it lies in the guest's memory, with its end.
    pub fn list(&self) -> Vec<u8> {
        let end = Self { list: self.list.clone() };
        end.step(END, below_4_gib(MARK), DONE);
        end.list.into_inner()
    }

    /// A kernel for the Multiboot protocol (version 1), which does what the list says in 32-bit
    /// protected mode.
    pub fn multiboot(&self) -> Vec<u8> {
        const MAGIC: u32 = 0x1bad_b002;
        const ADDRESSES: u32 = 1 << 16; // the header says where the file is to be loaded
        let load = below_4_gib(DATA);
        let entry = load + 32;
        let list = |code: &[u8]| entry + u32::try_from(code.len()).expect("a short program");
        // The first one is as long as the second.
        let draft = program(32, entry, list(&[]));
        let code = program(32, entry, list(&draft));
        let header = [
            MAGIC,
            ADDRESSES,
            MAGIC.wrapping_add(ADDRESSES).wrapping_neg(),
            load,
            load,
            0, // all of the file
            0, // no memory to be cleared
            entry,
        ];
        let header = header.map(u32::to_le_bytes);
        [header.as_flattened(), &code, &self.list()].concat()
    }
}

/// The program for long mode, at [`CODE`]; its list lies at [`DATA`].
pub fn interpreter() -> Vec<u8> {
    program(64, below_4_gib(CODE), below_4_gib(DATA))
}

fn below_4_gib(address: u64) -> u32 {
    u32::try_from(address).expect("an address below 4 GiB")
}

/// Does what the list at `list` says, then halts.
fn program(bits: u32, address: u32, list: u32) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bits).expect("a mode of the processor");
    interpret(&mut asm, list).expect("every instruction has an encoding");
    asm.assemble(address.into()).expect("every jump has a target")
}

/// The same instructions in both modes.
fn interpret(a: &mut CodeAssembler, list: u32) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let steps = [OUT8, OUT16, OUT32, IN8, READ, WRITE];
    let mut labels = steps.map(|_| a.create_label());
    a.mov(esi, list)?;
    a.cld()?;
    a.set_label(&mut next)?;
    a.mov(ebx, dword_ptr(esi))?;
    a.mov(edx, dword_ptr(esi + 4))?;
    a.mov(eax, dword_ptr(esi + 8))?;
    a.add(esi, 12)?;
    for (step, label) in steps.into_iter().zip(labels) {
        a.cmp(ebx, step)?;
        a.je(label)?;
    }
    a.mov(dword_ptr(edx), eax)?;
    a.hlt()?;
    for (step, label) in steps.into_iter().zip(&mut labels) {
        a.set_label(label)?;
        match step {
            OUT8 => a.out(dx, al)?,
            OUT16 => a.out(dx, ax)?,
            OUT32 => a.out(dx, eax)?,
            IN8 => a.in_(al, dx)?,
            READ => a.mov(al, byte_ptr(edx))?,
            _ => {
                a.mov(edi, edx)?;
                a.mov(ecx, eax)?;
                a.shr(ecx, 2u32)?;
                a.rep().movsd()?;
                a.mov(ecx, eax)?;
                a.and(ecx, 3)?;
                a.rep().movsb()?;
                // The next one begins with a whole word.
                a.neg(eax)?;
                a.and(eax, 3)?;
                a.add(esi, eax)?;
            }
        }
        a.jmp(next)?;
    }
    Ok(())
}
