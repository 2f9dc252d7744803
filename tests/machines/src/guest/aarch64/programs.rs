//! Small guest programs. What each does is told where those for x86-64 are; a port is an address.

use kvm_accel::Vcpu;

use super::asm::{Asm, If, Size, System, X, XZR};
use super::boot::core;

const X0: X = X(0);
const X1: X = X(1);
const X2: X = X(2);
const X3: X = X(3);
const X4: X = X(4);
// Arguments end at x5.
const A: X = X(9);
const B: X = X(10);
const C: X = X(11);
const D: X = X(12);
/// The sum of [`store_and_report_sum`].
const SUM: X = X(15);

/// Writes a program.
pub fn assemble(program: impl FnOnce(&mut Asm)) -> Vec<u8> {
    let mut asm = Asm::default();
    program(&mut asm);
    asm.bytes()
}

/// Adds one to the value of a size at `at`.
fn increment(a: &mut Asm, size: Size, at: X) {
    a.ldr(size, D, at, 0);
    a.add(D, D, 1);
    a.str(size, D, at, 0);
}

/// Ends at once. It runs at any address.
pub fn end(_: u64) -> Vec<u8> {
    assemble(Asm::end)
}

/// Jumps to `address`, with all registers as they are but for x9.
pub fn jump_to(address: u64) -> Vec<u8> {
    assemble(|a| {
        a.mov(A, address);
        a.br(A);
    })
}

/// Loads the byte at `x0`, stores 0x90 there, loads it, stores 0xff there, loads it:
/// how a flash chip is asked for its name. Puts the three at `x1`, then ends.
pub fn ask_flash() -> Vec<u8> {
    assemble(|a| {
        a.ldr(Size::B, A, X0, 0);
        a.str(Size::B, A, X1, 0);
        for (n, command) in [(1, 0x90), (2, 0xff)] {
            a.mov(B, command);
            a.str(Size::B, B, X0, 0);
            a.ldr(Size::B, A, X0, 0);
            a.str(Size::B, A, X1, n);
        }
        a.end();
    })
}

/// For ever: counts rounds in the 64-bit word at `x1`, stores the count to the 64-bit word at `x0`,
/// and puts what it reads back there at `x1 + 8`. It runs at any address.
pub fn store_and_copy_back(_: u64) -> Vec<u8> {
    assemble(|a| {
        let next = a.here();
        increment(a, Size::X, X1);
        a.ldr(Size::X, A, X1, 0);
        a.str(Size::X, A, X0, 0);
        a.ldr(Size::X, A, X0, 0);
        a.str(Size::X, A, X1, 8);
        a.b(next);
    })
}

/// Stores the low byte of `x2` at each of the `x1` 64-bit addresses that lie from `x0` on, then
/// ends.
pub fn store_at_addresses() -> Vec<u8> {
    assemble(|a| {
        let done = a.label();
        let next = a.here();
        a.cbz(X1, done);
        a.ldr(Size::X, A, X0, 0);
        a.str(Size::B, X2, A, 0);
        a.add(X0, X0, 8);
        a.sub(X1, X1, 1);
        a.b(next);
        a.place(done);
        a.end();
    })
}

/// Stores the low byte of `value` at each of `count` addresses, one at least, from `x0` on.
fn store_list(a: &mut Asm, count: X, value: X) {
    a.copy(B, X0);
    let next = a.here();
    a.ldr(Size::X, A, B, 0);
    a.str(Size::B, value, A, 0);
    a.add(B, B, 8);
    a.sub(count, count, 1);
    a.cbnz(count, next);
}

/// Waits until the 64-bit word at `x1` is not 0, and stores the low byte of the word after it at
/// each of as many 64-bit addresses, which lie from `x0` on; then makes the first word 0 again;
/// over and over.
pub fn store_when_asked() -> Vec<u8> {
    assemble(|a| {
        let wait = a.here();
        a.yield_();
        a.ldr(Size::X, X3, X1, 0);
        a.cbz(X3, wait);
        a.ldr(Size::X, X2, X1, 8);
        store_list(a, X3, X2);
        a.str(Size::X, XZR, X1, 0);
        a.b(wait);
    })
}

/// Stores the low byte of the second 64-bit word at `x1` at each of as many 64-bit addresses, which
/// lie from `x0` on, as the first word says, one at least; then writes a byte to `x2`; over and
/// over.
pub fn store_and_report() -> Vec<u8> {
    assemble(|a| {
        let again = a.here();
        a.ldr(Size::X, X3, X1, 0);
        a.ldr(Size::X, X4, X1, 8);
        store_list(a, X3, X4);
        a.str(Size::B, A, X2, 0);
        a.b(again);
    })
}

/// Stores the second 64-bit word at `x1` at each of as many 64-bit addresses, which lie from `x0`
/// on, as the first word says, then writes a byte to `x2`; over and over. In between changes
/// registers of all kinds to values that go with the word.
pub fn store_and_report_sum() -> Vec<u8> {
    /// TPIDR_EL1, which is the guest's own.
    const OWN: System = System(3, 0, 13, 0, 4);
    assemble(|a| {
        let done = a.label();
        let again = a.here();
        a.ldr(Size::X, X3, X1, 0);
        a.ldr(Size::X, X4, X1, 8);
        a.copy(B, X0);
        let next = a.here();
        a.cbz(X3, done);
        a.ldr(Size::X, A, B, 0);
        a.str(Size::X, X4, A, 0);
        a.add(B, B, 8);
        a.sub(X3, X3, 1);
        a.b(next);
        a.place(done);
        a.add_reg(SUM, SUM, X4); // over all passes
        a.msr(OWN, X4);
        a.str(Size::B, XZR, X2, 0);
        a.b(again);
    })
}

/// Increments the first byte of each page of `x2` bytes from `x0` up to `x1`, over and over; after
/// each pass increments the 64-bit word at `x3`, as a heartbeat.
pub fn increment_pages() -> Vec<u8> {
    assemble(|a| {
        let pass = a.here();
        a.copy(A, X0);
        let page = a.here();
        increment(a, Size::B, A);
        a.add_reg(A, A, X2);
        a.cmp(A, X1);
        a.b_if(If::Lower, page);
        increment(a, Size::X, X3);
        a.b(pass);
    })
}

/// Fills memory from `x0` up to `x1` with a growing 64-bit number, over and over; counts passes in
/// the 64-bit word at `x3`.
pub fn fill_memory() -> Vec<u8> {
    assemble(|a| {
        let pass = a.here();
        a.add(B, B, 1);
        a.copy(A, X0);
        let word = a.here();
        a.str(Size::X, B, A, 0);
        a.add(A, A, 8);
        a.cmp(A, X1);
        a.b_if(If::Lower, word);
        increment(a, Size::X, X3);
        a.b(pass);
    })
}

/// For ever: increments the first byte of each page of `x3` bytes from `x0` up to `x1`, over and
/// over; after each `x4` pages writes a growing number, of 32 bits, to `x2`. It runs at any
/// address.
pub fn increment_pages_and_beat(_: u64) -> Vec<u8> {
    assemble(|a| {
        let go_on = a.label();
        a.copy(C, XZR);
        a.copy(B, X4);
        let pass = a.here();
        a.copy(A, X0);
        let page = a.here();
        increment(a, Size::B, A);
        a.sub(B, B, 1);
        a.cbnz(B, go_on);
        a.copy(B, X4);
        a.add(C, C, 1);
        a.str(Size::W, C, X2, 0);
        a.place(go_on);
        a.add_reg(A, A, X3);
        a.cmp(A, X1);
        a.b_if(If::Lower, page);
        a.b(pass);
    })
}

/// Increments a byte of a random page of `x1` + 1 (a power of two) pages of `x2` bytes from `x0`
/// on, counts it in the 64-bit word at `x3`, spins for `x4` turns, for ever.
pub fn increment_random_pages() -> Vec<u8> {
    assemble(|a| {
        let (factor, term) = (X(13), X(14));
        a.mov(B, 1);
        // Knuth's generator, of which the upper bits are used.
        a.mov(factor, 6_364_136_223_846_793_005);
        a.mov(term, 1_442_695_040_888_963_407);
        let next = a.here();
        a.mul(B, B, factor);
        a.add_reg(B, B, term);
        a.lsr(A, B, 40);
        a.and(A, A, X1);
        a.mul(A, A, X2);
        a.add_reg(A, A, X0);
        increment(a, Size::B, A);
        increment(a, Size::X, X3);
        a.copy(C, X4);
        let spin = a.here();
        a.sub(C, C, 1);
        a.cbnz(C, spin);
        a.b(next);
    })
}

/// Stores a byte at `x0`, loads one at `x0 + 0x20`, puts it at `x1` and at `x0`, then ends.
pub fn store_load_and_store() -> Vec<u8> {
    assemble(|a| {
        a.str(Size::B, A, X0, 0);
        a.ldr(Size::B, A, X0, 0x20);
        a.str(Size::B, A, X1, 0);
        a.str(Size::B, A, X0, 0);
        a.end();
    })
}

/// Loads bytes, halfwords, words and doublewords from `x0`, puts the four 64-bit results at `x1`,
/// stores `x2` in the four sizes at `x0`, then ends.
pub fn load_and_store_all_sizes() -> Vec<u8> {
    assemble(|a| {
        let sizes = [Size::B, Size::H, Size::W, Size::X];
        for (n, size) in (0..).zip(sizes) {
            a.ldr(size, A, X0, 0);
            a.str(Size::X, A, X1, 8 * n);
        }
        for size in sizes {
            a.str(size, X2, X0, 0);
        }
        a.end();
    })
}

/// Reads 32 bits of `x2` for ever, adding what it reads to the 64-bit word at `x0` and one to the
/// word after it.
pub fn count_port_reads() -> Vec<u8> {
    assemble(|a| {
        let next = a.here();
        a.ldr(Size::W, A, X2, 0);
        a.ldr(Size::X, B, X0, 0);
        a.add_reg(B, B, A);
        a.str(Size::X, B, X0, 0);
        a.add(C, X0, 8);
        increment(a, Size::X, C);
        a.b(next);
    })
}

/// The sum of [`store_and_report_sum`].
///
/// # Panics
///
/// If KVM does not return the register.
pub fn sum(vcpu: &Vcpu) -> u64 {
    register(vcpu, SUM)
}

/// What [`count_port_reads`] has read last.
///
/// # Panics
///
/// If KVM does not return the register.
pub fn port_was_read(vcpu: &Vcpu) -> u64 {
    register(vcpu, A)
}

fn register(vcpu: &Vcpu, register: X) -> u64 {
    let mut value = [0; 8];
    vcpu.fd().get_one_reg(core(8 * u64::from(register.0)), &mut value).unwrap();
    u64::from_le_bytes(value)
}

/// Stores a growing number to the word at `x0` and compares it with what it reads back; counts
/// rounds at `x1` and differences at `x1 + 8`, for ever.
pub fn store_and_read_back() -> Vec<u8> {
    assemble(|a| {
        let same = a.label();
        a.copy(B, XZR);
        let next = a.here();
        a.add(B, B, 1);
        a.str(Size::W, B, X0, 0);
        a.ldr(Size::W, A, X0, 0);
        a.cmp(A, B);
        a.b_if(If::Equal, same);
        a.add(C, X1, 8);
        increment(a, Size::X, C);
        a.place(same);
        increment(a, Size::X, X1);
        a.b(next);
    })
}

/// Stores the words 1 up to `x1` to `x0`; sets the 64-bit word at `x2` to 1, waits until it is
/// another, stores a byte of 0xff to `x3`, then ends.
pub fn store_many_then_wait(_: bool) -> Vec<u8> {
    assemble(|a| {
        a.copy(A, XZR);
        let next = a.here();
        a.add(A, A, 1);
        a.str(Size::W, A, X0, 0);
        a.cmp(A, X1);
        a.b_if(If::Lower, next);
        a.mov(B, 1);
        a.str(Size::X, B, X2, 0);
        let wait = a.here();
        a.yield_();
        a.ldr(Size::X, C, X2, 0);
        a.cmp(C, B);
        a.b_if(If::Equal, wait);
        a.mov(A, 0xff);
        a.str(Size::B, A, X3, 0);
        a.end();
    })
}
