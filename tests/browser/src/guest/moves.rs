//! Keys, and what they and the time move.

use rv64::assemble::{
    Condition::{Eq, Ltu, Ne},
    Program, add, addi, and, andi, lbu, mul, or,
    reg::*,
    srli, sub, xori,
};
use rv64::layout::UART;

use crate::guest::numbers::{clamp, constant};
use crate::scene::{Key, STEP};

/// Reads what the serial port has received: `s7` are then the keys that are down, and `a5` those
/// and the ones that were pressed since the last frame.
pub(super) fn read_keys(p: &mut Program) {
    let (pressed, done) = (p.label(), p.label());
    p.li(A5, 0);
    p.li(T0, UART);
    let byte = p.here();
    p.put(lbu(T1, 5, T0));
    p.put(andi(T1, T1, 1));
    p.branch(Eq, T1, ZERO, done);
    p.put(lbu(T1, 0, T0));
    p.put(andi(T2, T1, 0x7f));
    // t3: the key's bit, or none.
    p.li(T3, 0);
    for key in Key::ALL {
        let other = p.label();
        p.li(T4, (key as u8).into());
        p.branch(Ne, T2, T4, other);
        constant(p, T3, 1 << key.bit());
        p.bind(other);
    }
    p.put(andi(T1, T1, 0x80));
    p.branch(Eq, T1, ZERO, pressed);
    p.put(xori(T3, T3, -1));
    p.put(and(S7, S7, T3));
    p.jump(ZERO, byte);
    p.bind(pressed);
    p.put(or(S7, S7, T3));
    p.put(or(A5, A5, T3));
    p.jump(ZERO, byte);
    p.bind(done);
    p.put(or(A5, A5, S7));
}

/// Moves the ball on one axis, and back where it would leave 0 to `end`.
pub(super) fn bounce(p: &mut Program, place: u8, velocity: u8, end: i32) {
    let inside = p.label();
    constant(p, T1, end + 1);
    p.put(add(T0, place, velocity));
    p.branch(Ltu, T0, T1, inside); // what is negative is larger
    p.put(sub(velocity, ZERO, velocity));
    p.put(add(T0, place, velocity));
    p.bind(inside);
    p.put(addi(place, T0, 0));
}

/// Moves the lens on one axis by the keys in `a5`, up to 0 or `end`.
pub(super) fn move_lens(p: &mut Program, place: u8, to: Key, from: Key, end: i32) {
    p.put(srli(T0, A5, to.bit()));
    p.put(andi(T0, T0, 1));
    p.put(srli(T1, A5, from.bit()));
    p.put(andi(T1, T1, 1));
    p.put(sub(T0, T0, T1));
    constant(p, T1, STEP);
    p.put(mul(T0, T0, T1));
    p.put(add(place, place, T0));
    constant(p, T1, end);
    clamp(p, place, T1);
}
