//! What instructions compute of words and of products, and where a division has no result.
#![allow(clippy::cast_possible_truncation)] // to take the lower half is what these are for

use crate::isa::op::Amo;

/// The lower 32 bits, sign-extended.
#[inline(always)]
pub(super) fn word(value: u64) -> u64 {
    i64::from(value as i32).cast_unsigned()
}

/// The lower 32 bits.
#[inline(always)]
pub(super) fn low(value: u64) -> u32 {
    value as u32
}

/// The lower 16 bits.
#[inline(always)]
pub(super) fn half(value: u64) -> u16 {
    value as u16
}

/// The lower 8 bits.
#[inline(always)]
pub(super) fn byte(value: u64) -> u8 {
    value as u8
}

/// A word that is sign-extended.
#[inline(always)]
pub(super) fn extended(value: u32) -> u64 {
    i64::from(value.cast_signed()).cast_unsigned()
}

pub(super) fn mulh(a: u64, b: u64) -> u64 {
    ((i128::from(a.cast_signed()) * i128::from(b.cast_signed())) >> 64) as u64
}

pub(super) fn mulhsu(a: u64, b: u64) -> u64 {
    (i128::from(a.cast_signed()).wrapping_mul(i128::from(b)) >> 64) as u64
}

pub(super) fn mulhu(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

// A division by zero gives all ones, and the dividend as its remainder; the overflow of a signed
// one the dividend, and 0 (unprivileged ISA manual, "M" Extension, "Division Operations").

pub(super) fn div(a: u64, b: u64) -> u64 {
    if b == 0 { u64::MAX } else { a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned() }
}

pub(super) fn divu(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

pub(super) fn rem(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned() }
}

pub(super) fn remu(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

pub(super) fn divw(a: u64, b: u64) -> u64 {
    let (a, b) = (a as i32, b as i32);
    extended(if b == 0 { u32::MAX } else { a.wrapping_div(b).cast_unsigned() })
}

pub(super) fn divuw(a: u64, b: u64) -> u64 {
    extended(low(a).checked_div(low(b)).unwrap_or(u32::MAX))
}

pub(super) fn remw(a: u64, b: u64) -> u64 {
    let (a, b) = (a as i32, b as i32);
    extended(if b == 0 { a } else { a.wrapping_rem(b) }.cast_unsigned())
}

pub(super) fn remuw(a: u64, b: u64) -> u64 {
    extended(low(a).checked_rem(low(b)).unwrap_or(low(a)))
}

/// What an AMO of 32 bits stores.
pub(super) fn amo_word(amo: Amo, old: u32, operand: u32) -> u32 {
    match amo {
        Amo::Min => old.cast_signed().min(operand.cast_signed()).cast_unsigned(),
        Amo::Max => old.cast_signed().max(operand.cast_signed()).cast_unsigned(),
        // Of values that are not sign-extended, the lower halves are those of the rest.
        amo => amo_double(amo, old.into(), operand.into()) as u32,
    }
}

/// What an AMO of 64 bits stores.
pub(super) fn amo_double(amo: Amo, old: u64, operand: u64) -> u64 {
    match amo {
        Amo::Swap => operand,
        Amo::Add => old.wrapping_add(operand),
        Amo::Xor => old ^ operand,
        Amo::And => old & operand,
        Amo::Or => old | operand,
        Amo::Min => old.cast_signed().min(operand.cast_signed()).cast_unsigned(),
        Amo::Max => old.cast_signed().max(operand.cast_signed()).cast_unsigned(),
        Amo::Minu => old.min(operand),
        Amo::Maxu => old.max(operand),
    }
}
