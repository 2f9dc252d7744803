//! The guest of the demonstration.

use crate::assemble::{
    Condition::{Eq, Ltu, Ne},
    Program, WFI, add, addi, and, csr, csrrw, divu, jalr, lbu, ld, mul,
    reg::*,
    remu, sb, sd, slli, srli, sw, xor,
};
use crate::demo::picture::{INVERT, MOVES, SIDE};
use crate::machine::layout::{CLINT, FINISHER, FRAME_BUFFER, HEIGHT, RAM, UART, WIDTH};

/// Ticks of the clock between two frames: 60 in a second.
const INTERVAL: u64 = 10_000_000 / 60;

const STACK: u64 = 0x1_0000;

/// Draws the ground, and then in each frame the square: it restores what was under it, and inverts
/// what is there now. After each frame it prints its number and waits for the clock; after `frames`
/// of them it ends the machine.
///
/// s0 is the frame, s1 the number of frames, s2 and s3 the square's corner, s4 the time of the next
/// frame.
pub fn guest(frames: u64) -> Vec<u8> {
    let mut p = Program::at(RAM);
    let (draw, print, print_number, hello, word) =
        (p.label(), p.label(), p.label(), p.label(), p.label());
    p.li(SP, RAM + STACK);
    p.li(S0, 0);
    p.li(S1, frames);
    p.la(A0, hello);
    p.jump(RA, print);
    // Timer interrupts end `wfi`; none is taken.
    p.li(T0, 1 << 7);
    p.put(csrrw(ZERO, csr::MIE, T0));
    p.li(T0, CLINT + 0xbff8);
    p.put(ld(S4, 0, T0));
    p.li(A0, 0);
    p.li(A1, 0);
    p.li(A2, WIDTH);
    p.li(A3, HEIGHT);
    p.li(A4, 0);
    p.jump(RA, draw);
    let (frame, no_square, done) = (p.here(), p.label(), p.label());
    p.branch(Eq, S0, S1, done);
    p.branch(Eq, S0, ZERO, no_square);
    square(&mut p, 0, draw);
    p.bind(no_square);
    p.li(T0, MOVES.0);
    p.put(mul(S2, S0, T0));
    p.li(T0, WIDTH - SIDE);
    p.put(remu(S2, S2, T0));
    p.li(T0, MOVES.1);
    p.put(mul(S3, S0, T0));
    p.li(T0, HEIGHT - SIDE);
    p.put(remu(S3, S3, T0));
    square(&mut p, INVERT, draw);
    p.la(A0, word);
    p.jump(RA, print);
    p.put(addi(A0, S0, 0));
    p.jump(RA, print_number);
    wait(&mut p);
    p.put(addi(S0, S0, 1));
    p.jump(ZERO, frame);
    p.bind(done);
    p.li(T0, FINISHER);
    p.li(T1, 0x5555);
    p.put(sw(T1, 0, T0));
    let stop = p.here();
    p.put(WFI);
    p.jump(ZERO, stop);
    p.bind(draw);
    draw_rectangle(&mut p);
    p.bind(print);
    print_text(&mut p);
    p.bind(print_number);
    print_decimal(&mut p, print);
    p.bind(hello);
    p.bytes(b"rv64\n\0");
    p.bind(word);
    p.bytes(b"frame \0");
    p.finish()
}

/// Draws the square with these bits of its colours inverted.
fn square(p: &mut Program, invert: u32, draw: crate::assemble::Label) {
    p.put(addi(A0, S2, 0));
    p.put(addi(A1, S3, 0));
    p.li(A2, SIDE);
    p.li(A3, SIDE);
    p.li(A4, invert.into());
    p.jump(RA, draw);
}

/// Waits until the next frame is due.
fn wait(p: &mut Program) {
    let due = p.label();
    p.li(T0, INTERVAL);
    p.put(add(S4, S4, T0));
    p.li(T0, CLINT + 0x4000);
    p.put(sd(S4, 0, T0));
    let again = p.here();
    p.li(T0, CLINT + 0xbff8);
    p.put(ld(T0, 0, T0));
    p.branch(Ltu, S4, T0, due);
    p.branch(Eq, S4, T0, due);
    p.put(WFI);
    p.jump(ZERO, again);
    p.bind(due);
}

/// A rectangle from column a0 and line a1, a2 wide and a3 high, with a4 added by exclusive or.
fn draw_rectangle(p: &mut Program) {
    p.li(T0, WIDTH);
    p.put(add(A2, A2, A0)); // the column after
    p.put(add(A3, A3, A1)); // the line after
    p.li(T5, FRAME_BUFFER);
    p.li(T6, 0xffff);
    let line = p.here();
    p.put(mul(T1, A1, T0));
    p.put(add(T1, T1, A0));
    p.put(slli(T1, T1, 2));
    p.put(add(T1, T1, T5)); // the pixel's address
    p.put(addi(T2, A0, 0));
    let pixel = p.here();
    p.put(slli(T3, T2, 8));
    p.put(xor(T3, T3, A1));
    p.put(and(T3, T3, T6));
    p.put(xor(T3, T3, A4));
    p.put(sw(T3, 0, T1));
    p.put(addi(T1, T1, 4));
    p.put(addi(T2, T2, 1));
    p.branch(Ltu, T2, A2, pixel);
    p.put(addi(A1, A1, 1));
    p.branch(Ltu, A1, A3, line);
    p.put(jalr(ZERO, 0, RA));
}

/// The text at a0, up to a zero.
fn print_text(p: &mut Program) {
    let done = p.label();
    p.li(T0, UART);
    let byte = p.here();
    p.put(lbu(T1, 0, A0));
    p.branch(Eq, T1, ZERO, done);
    let full = p.here();
    p.put(lbu(T2, 5, T0));
    p.put(srli(T2, T2, 5));
    p.branch(Eq, T2, ZERO, full);
    p.put(sb(T1, 0, T0));
    p.put(addi(A0, A0, 1));
    p.jump(ZERO, byte);
    p.bind(done);
    p.put(jalr(ZERO, 0, RA));
}

/// The number in a0, and a new line.
fn print_decimal(p: &mut Program, print: crate::assemble::Label) {
    // From the back, on the stack.
    p.put(addi(SP, SP, -48));
    p.put(sd(RA, 32, SP));
    p.put(addi(T0, SP, 30));
    p.put(sb(ZERO, 1, T0));
    p.li(T1, u64::from(b'\n'));
    p.put(sb(T1, 0, T0));
    p.li(T2, 10);
    let digit = p.here();
    p.put(remu(T1, A0, T2));
    p.put(addi(T1, T1, i32::from(b'0')));
    p.put(addi(T0, T0, -1));
    p.put(sb(T1, 0, T0));
    p.put(divu(A0, A0, T2));
    p.branch(Ne, A0, ZERO, digit);
    p.put(addi(A0, T0, 0));
    p.jump(RA, print);
    p.put(ld(RA, 32, SP));
    p.put(addi(SP, SP, 48));
    p.put(jalr(ZERO, 0, RA));
}
