//! Constants and limits.

use rv64::assemble::{Condition::Ge, Program, addi, reg::ZERO};

/// Puts a constant into a register.
pub(super) fn constant(p: &mut Program, register: u8, value: i32) {
    p.li(register, i64::from(value).cast_unsigned());
}

/// Moves a number into 0 to that in `end`.
pub(super) fn clamp(p: &mut Program, number: u8, end: u8) {
    let (not_below, not_above) = (p.label(), p.label());
    p.branch(Ge, number, ZERO, not_below);
    p.put(addi(number, ZERO, 0));
    p.bind(not_below);
    p.branch(Ge, end, number, not_above);
    p.put(addi(number, end, 0));
    p.bind(not_above);
}
