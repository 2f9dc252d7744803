//! Small guest programs.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::CODE;

/// Assembles a program that lies at [`CODE`].
///
/// # Panics
///
/// If an instruction has no encoding: a mistake in the program.
pub fn assemble(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    program(&mut asm).unwrap();
    asm.assemble(CODE).unwrap()
}

/// Stores the low byte of `rdx` at each of the `rsi` 64-bit addresses that lie from
/// `rdi` on, then ends.
pub fn store_at_addresses() -> Vec<u8> {
    assemble(|a| {
        let (mut next, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut next)?;
        a.test(rsi, rsi)?;
        a.jz(done)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(byte_ptr(rax), dl)?;
        a.add(rdi, 8)?;
        a.dec(rsi)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.hlt()
    })
}

/// Increments the first byte of each page of `rdx` bytes from `rdi` up to `rsi`, over
/// and over, for ever.
pub fn increment_pages() -> Vec<u8> {
    assemble(|a| {
        let (mut pass, mut page) = (a.create_label(), a.create_label());
        a.set_label(&mut pass)?;
        a.mov(rax, rdi)?;
        a.set_label(&mut page)?;
        a.inc(byte_ptr(rax))?;
        a.add(rax, rdx)?;
        a.cmp(rax, rsi)?;
        a.jb(page)?;
        a.jmp(pass)
    })
}
