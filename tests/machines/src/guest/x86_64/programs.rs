//! Small guest programs.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_accel::Vcpu;

use crate::guest::CODE;

/// Assembles a program that lies at [`CODE`].
///
/// # Panics
///
/// If an instruction has no encoding: a mistake in the program.
pub fn assemble(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble_at(CODE, program)
}

/// Assembles a program that lies at `address`.
///
/// # Panics
///
/// If an instruction has no encoding: a mistake in the program.
pub fn assemble_at(
    address: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    program(&mut asm).unwrap();
    asm.assemble(address).unwrap()
}

/// At `address`: ends at once.
pub fn end(address: u64) -> Vec<u8> {
    assemble_at(address, CodeAssembler::hlt)
}

/// Jumps to `address`, with all registers as they are but for rax.
pub fn jump_to(address: u64) -> Vec<u8> {
    assemble(|a| {
        a.mov(rax, address)?;
        a.jmp(rax)
    })
}

/// Loads the byte at `rdi`, stores 0x90 there, loads it, stores 0xff there, loads it:
/// how a flash chip is asked for its name. Puts the three at `rsi`, then ends.
pub fn ask_flash() -> Vec<u8> {
    assemble(|a| {
        a.movzx(eax, byte_ptr(rdi))?;
        a.mov(byte_ptr(rsi), al)?;
        a.mov(byte_ptr(rdi), 0x90u32 as i32)?;
        a.movzx(eax, byte_ptr(rdi))?;
        a.mov(byte_ptr(rsi + 1), al)?;
        a.mov(byte_ptr(rdi), 0xffu32 as i32)?;
        a.movzx(eax, byte_ptr(rdi))?;
        a.mov(byte_ptr(rsi + 2), al)?;
        a.hlt()
    })
}

/// At `address`, for ever: counts rounds in the 64-bit word at `rsi`, stores the count to
/// the 64-bit word at `rdi`, and puts what it reads back there at `rsi + 8`.
pub fn store_and_copy_back(address: u64) -> Vec<u8> {
    assemble_at(address, |a| {
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.inc(qword_ptr(rsi))?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(qword_ptr(rsi + 8), rax)?;
        a.jmp(next)
    })
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

/// Waits until the 64-bit word at `rsi` is not 0, and stores the low byte of the word after
/// it at each of as many 64-bit addresses, which lie from `rdi` on; then makes the first word
/// 0 again; over and over.
pub fn store_when_asked() -> Vec<u8> {
    assemble(|a| {
        let (mut wait, mut next) = (a.create_label(), a.create_label());
        a.set_label(&mut wait)?;
        a.pause()?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.test(rcx, rcx)?;
        a.jz(wait)?;
        a.mov(rdx, qword_ptr(rsi + 8))?;
        a.mov(rbx, rdi)?;
        a.set_label(&mut next)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(byte_ptr(rax), dl)?;
        a.add(rbx, 8)?;
        a.dec(rcx)?;
        a.jnz(next)?;
        a.mov(qword_ptr(rsi), 0)?;
        a.jmp(wait)
    })
}

/// Stores the low byte of the second 64-bit word at `rsi` at each of as many 64-bit addresses,
/// which lie from `rdi` on, as the first word says, one at least; then writes to port `rdx`;
/// over and over.
pub fn store_and_report() -> Vec<u8> {
    assemble(|a| {
        let (mut again, mut next) = (a.create_label(), a.create_label());
        a.mov(r8, rdx)?;
        a.set_label(&mut again)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.mov(rdx, qword_ptr(rsi + 8))?;
        a.mov(rbx, rdi)?;
        a.set_label(&mut next)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(byte_ptr(rax), dl)?;
        a.add(rbx, 8)?;
        a.dec(rcx)?;
        a.jnz(next)?;
        a.mov(rdx, r8)?;
        a.out(dx, al)?;
        a.jmp(again)
    })
}

/// Stores the second 64-bit word at `rsi` at each of as many 64-bit addresses, which lie from `rdi`
/// on, as the first word says, then halts; over and over. In between changes registers of all kinds
/// to values that go with the word. In ring 0.
pub fn store_and_report_sum() -> Vec<u8> {
    /// IA32_STAR.
    const STAR: u32 = 0xc000_0081;
    assemble(|a| {
        let (mut again, mut next, mut done) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(r8, qword_ptr(rsi))?;
        a.mov(r9, qword_ptr(rsi + 8))?;
        a.mov(rbx, rdi)?;
        a.set_label(&mut next)?;
        a.test(r8, r8)?;
        a.jz(done)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rax), r9)?;
        a.add(rbx, 8)?;
        a.dec(r8)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.add(r12, r9)?; // over all passes
        a.mov(dr0, r9)?;
        a.mov(ecx, STAR)?;
        a.mov(eax, r9d)?;
        a.mov(edx, r9d)?;
        a.wrmsr()?;
        a.hlt()?;
        a.jmp(again)
    })
}

/// Increments the first byte of each page of `rdx` bytes from `rdi` up to `rsi`, over
/// and over; after each pass increments the 64-bit word at `rcx`, as a heartbeat.
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
        a.inc(qword_ptr(rcx))?;
        a.jmp(pass)
    })
}

/// Fills memory from `rdi` up to `rsi` with a growing 64-bit number, by one string instruction
/// a pass, over and over; counts passes in the 64-bit word at `rcx`.
pub fn fill_memory() -> Vec<u8> {
    assemble(|a| {
        let mut pass = a.create_label();
        a.mov(r8, rdi)?;
        a.mov(r9, rcx)?;
        a.sub(rsi, rdi)?;
        a.shr(rsi, 3)?;
        a.set_label(&mut pass)?;
        a.mov(rdi, r8)?;
        a.mov(rcx, rsi)?;
        a.inc(rax)?;
        a.rep().stosq()?;
        a.inc(qword_ptr(r9))?;
        a.jmp(pass)
    })
}

/// At `address`, for ever: increments the first byte of each page of `rcx` bytes from `rdi`
/// up to `rsi`, over and over; after each `r8` pages writes a growing number to port `rdx`.
pub fn increment_pages_and_beat(address: u64) -> Vec<u8> {
    assemble_at(address, |a| {
        let (mut pass, mut page, mut go_on) =
            (a.create_label(), a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.mov(r10, r8)?;
        a.set_label(&mut pass)?;
        a.mov(r9, rdi)?;
        a.set_label(&mut page)?;
        a.inc(byte_ptr(r9))?;
        a.dec(r10)?;
        a.jnz(go_on)?;
        a.mov(r10, r8)?;
        a.inc(eax)?;
        a.out(dx, eax)?;
        a.set_label(&mut go_on)?;
        a.add(r9, rcx)?;
        a.cmp(r9, rsi)?;
        a.jb(page)?;
        a.jmp(pass)
    })
}

/// Increments a byte of a random page of `rsi` + 1 (a power of two) pages of `rdx` bytes
/// from `rdi` on, counts it in the 64-bit word at `rcx`, spins for `r8` turns, for ever.
pub fn increment_random_pages() -> Vec<u8> {
    assemble(|a| {
        let (mut next, mut spin) = (a.create_label(), a.create_label());
        a.mov(r9, 1u64)?;
        a.set_label(&mut next)?;
        // Knuth's generator, of which the upper bits are used.
        a.mov(rax, 6_364_136_223_846_793_005u64)?;
        a.imul_2(r9, rax)?;
        a.mov(rax, 1_442_695_040_888_963_407u64)?;
        a.add(r9, rax)?;
        a.mov(rax, r9)?;
        a.shr(rax, 40u32)?;
        a.and(rax, rsi)?;
        a.imul_2(rax, rdx)?;
        a.inc(byte_ptr(rdi + rax))?;
        a.inc(qword_ptr(rcx))?;
        a.mov(rax, r8)?;
        a.set_label(&mut spin)?;
        a.dec(rax)?;
        a.jnz(spin)?;
        a.jmp(next)
    })
}

/// Stores a byte at `rdi`, loads one at `rdi + 0x20`, puts it at `rsi` and at `rdi`, then ends.
pub fn store_load_and_store() -> Vec<u8> {
    assemble(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.mov(al, byte_ptr(rdi + 0x20))?;
        a.mov(byte_ptr(rsi), al)?;
        a.mov(byte_ptr(rdi), al)?;
        a.hlt()
    })
}

/// Loads bytes, words, doublewords and quadwords from `rdi`, puts the four 64-bit
/// results at `rsi`, stores `rdx` in the four sizes at `rdi`, then ends.
pub fn load_and_store_all_sizes() -> Vec<u8> {
    assemble(|a| {
        a.movzx(eax, byte_ptr(rdi))?;
        a.mov(qword_ptr(rsi), rax)?;
        a.movzx(eax, word_ptr(rdi))?;
        a.mov(qword_ptr(rsi + 8), rax)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(qword_ptr(rsi + 16), rax)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(qword_ptr(rsi + 24), rax)?;
        a.mov(byte_ptr(rdi), dl)?;
        a.mov(word_ptr(rdi), dx)?;
        a.mov(dword_ptr(rdi), edx)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.hlt()
    })
}

/// Reads port `rdx` in 8, 16 and 32 bits, puts the three 64-bit results at `rsi`,
/// writes the low parts of `rcx` in the three sizes, then the three words from `rdi`
/// on with one string instruction, then ends.
pub fn access_ports() -> Vec<u8> {
    assemble(|a| {
        a.mov(r8, rcx)?;
        a.xor(eax, eax)?;
        a.in_(al, dx)?;
        a.mov(qword_ptr(rsi), rax)?;
        a.xor(eax, eax)?;
        a.in_(ax, dx)?;
        a.mov(qword_ptr(rsi + 8), rax)?;
        a.in_(eax, dx)?;
        a.mov(qword_ptr(rsi + 16), rax)?;
        a.mov(rax, r8)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(rsi, rdi)?;
        a.mov(ecx, 3)?;
        a.rep().outsw()?;
        a.hlt()
    })
}

/// Reads port `rdx` for ever, adding what it reads to the 64-bit word at `rdi` and
/// one to the word after it.
pub fn count_port_reads() -> Vec<u8> {
    assemble(|a| {
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.in_(eax, dx)?;
        a.add(qword_ptr(rdi), rax)?;
        a.inc(qword_ptr(rdi + 8))?;
        a.jmp(next)
    })
}

/// The sum of [`store_and_report_sum`].
///
/// # Panics
///
/// If KVM does not return the registers.
pub fn sum(vcpu: &Vcpu) -> u64 {
    vcpu.fd().get_regs().unwrap().r12
}

/// What [`count_port_reads`] has read last.
///
/// # Panics
///
/// If KVM does not return the registers.
pub fn port_was_read(vcpu: &Vcpu) -> u64 {
    vcpu.fd().get_regs().unwrap().rax
}

/// Stores a growing number to the doubleword at `rdi` and compares it with what it
/// reads back; counts rounds at `rsi` and differences at `rsi + 8`, for ever.
pub fn store_and_read_back() -> Vec<u8> {
    assemble(|a| {
        let (mut next, mut same) = (a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.set_label(&mut next)?;
        a.inc(eax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.cmp(dword_ptr(rdi), eax)?;
        a.je(same)?;
        a.inc(qword_ptr(rsi + 8))?;
        a.set_label(&mut same)?;
        a.inc(qword_ptr(rsi))?;
        a.jmp(next)
    })
}

/// Fills memory from `rdi` up to `rsi` with words from port `rdx`, `rcx` of them with
/// each string instruction, then ends.
pub fn fill_from_port() -> Vec<u8> {
    assemble(|a| {
        let mut next = a.create_label();
        a.mov(r8, rcx)?;
        a.set_label(&mut next)?;
        a.mov(rcx, r8)?;
        a.rep().insw()?;
        a.cmp(rdi, rsi)?;
        a.jb(next)?;
        a.hlt()
    })
}

/// Stores the doublewords 1 up to `rsi` to `rdi`, or writes them to port `rdi` if
/// `ports`; sets the 64-bit word at `rdx` to 1, waits until it is another, stores a byte
/// of 0xff to `rcx`, then ends.
pub fn store_many_then_wait(ports: bool) -> Vec<u8> {
    assemble(|a| {
        let (mut next, mut wait) = (a.create_label(), a.create_label());
        a.mov(r8, rdx)?;
        a.mov(edx, edi)?;
        a.xor(eax, eax)?;
        a.set_label(&mut next)?;
        a.inc(eax)?;
        if ports {
            a.out(dx, eax)?;
        } else {
            a.mov(dword_ptr(rdi), eax)?;
        }
        a.cmp(eax, esi)?;
        a.jb(next)?;
        a.mov(qword_ptr(r8), 1)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(qword_ptr(r8), 1)?;
        a.je(wait)?;
        a.mov(byte_ptr(rcx), 0xffu32 as i32)?;
        a.hlt()
    })
}
