//! Guests: each runs until `wfi`, and can be started again.

use rv64::assemble::{Condition::*, Program, WFI, add, addi, jalr, lbu, ld, reg::*, sb, sd, slli};

/// Where RAM is, and how many bytes.
pub const BASE: u64 = 0x8000_0000;
pub const SIZE: u64 = 16 << 20;
/// Where data begins, and where the stack ends.
pub const DATA: u64 = BASE + (1 << 20);
const STACK: u64 = BASE + (1 << 20);

const WORDS: u64 = 8192;

/// Stores doublewords one after the other.
pub fn memset() -> Vec<u8> {
    let mut p = Program::at(BASE);
    p.li(A0, DATA);
    p.li(A1, DATA + 8 * WORDS);
    let again = p.here();
    p.put(sd(A2, 0, A0));
    p.put(addi(A0, A0, 8));
    p.branch(Ltu, A0, A1, again);
    p.put(WFI);
    p.finish()
}

/// Copies doublewords.
pub fn memcpy() -> Vec<u8> {
    let mut p = Program::at(BASE);
    p.li(A0, DATA);
    p.li(A1, DATA + 8 * WORDS);
    p.li(A2, DATA + 8 * WORDS);
    let again = p.here();
    p.put(ld(A3, 0, A0));
    p.put(sd(A3, 0, A2));
    p.put(addi(A0, A0, 8));
    p.put(addi(A2, A2, 8));
    p.branch(Ltu, A0, A1, again);
    p.put(WFI);
    p.finish()
}

/// Sorts doublewords, by recursion.
pub fn quick_sort() -> Vec<u8> {
    let mut p = Program::at(BASE);
    p.li(SP, STACK);
    p.li(A0, DATA);
    p.li(A1, DATA + 8 * (WORDS / 4 - 1));
    let sort = p.label();
    p.jump(RA, sort);
    p.put(WFI);
    // Sorts from the doubleword at a0 to that at a1, signed.
    p.bind(sort);
    let done = p.label();
    p.branch(Geu, A0, A1, done);
    p.put(ld(T0, 0, A1)); // pivot
    p.put(addi(T1, A0, 0)); // the next place of a lesser one
    p.put(addi(T2, A0, 0));
    let (each, greater) = (p.here(), p.label());
    p.put(ld(T3, 0, T2));
    p.branch(Ge, T3, T0, greater);
    p.put(ld(T4, 0, T1));
    p.put(sd(T3, 0, T1));
    p.put(sd(T4, 0, T2));
    p.put(addi(T1, T1, 8));
    p.bind(greater);
    p.put(addi(T2, T2, 8));
    p.branch(Ltu, T2, A1, each);
    p.put(ld(T4, 0, T1));
    p.put(sd(T0, 0, T1));
    p.put(sd(T4, 0, A1));
    p.put(addi(SP, SP, -24));
    p.put(sd(RA, 0, SP));
    p.put(sd(A1, 8, SP));
    p.put(sd(T1, 16, SP));
    p.put(addi(A1, T1, -8));
    p.jump(RA, sort);
    p.put(ld(A1, 8, SP));
    p.put(ld(A0, 16, SP));
    p.put(addi(A0, A0, 8));
    p.jump(RA, sort);
    p.put(ld(RA, 0, SP));
    p.put(addi(SP, SP, 24));
    p.bind(done);
    p.put(jalr(ZERO, 0, RA));
    p.finish()
}

/// Crosses out the multiples of each number, a byte each.
pub fn sieve() -> Vec<u8> {
    let mut p = Program::at(BASE);
    let numbers = 8 * WORDS;
    p.li(S0, DATA);
    p.li(A0, 2);
    p.li(A1, numbers);
    p.li(A2, 1);
    let (each, next) = (p.here(), p.label());
    p.put(add(T0, S0, A0));
    p.put(lbu(T0, 0, T0));
    p.branch(Eq, T0, A2, next);
    p.put(slli(T1, A0, 1));
    p.branch(Geu, T1, A1, next);
    let multiple = p.here();
    p.put(add(T2, S0, T1));
    p.put(sb(A2, 0, T2));
    p.put(add(T1, T1, A0));
    p.branch(Ltu, T1, A1, multiple);
    p.bind(next);
    p.put(addi(A0, A0, 1));
    p.branch(Ltu, A0, A1, each);
    p.put(WFI);
    p.finish()
}

/// The data that a guest finds: all different, in no order.
pub fn data() -> Vec<u8> {
    let mixed = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20).to_le_bytes();
    (0..2 * WORDS).flat_map(mixed).collect()
}
