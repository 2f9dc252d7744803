//! Draws rectangles of the scene.

use rv64::assemble::{
    Condition::{Geu, Ltu},
    Label, Program, add, addi, and, andi, jalr, mul,
    reg::*,
    slli, srli, sub, sw, xor,
};

use crate::guest::numbers::{clamp, constant};
use crate::layout::VRAM;
use crate::scene::{
    BALL, BORDER, DARK, GROUND, HEIGHT, LIGHT, LIGHT_SQUARE, RADIUS, SIDE, WHITE, WIDTH,
};

/// Draws a square, and as much around it as it may have moved by. Keeps `a5`.
pub(super) fn draw_around(p: &mut Program, draw: Label, place: [u8; 2], side: i32, margin: i32) {
    for (place, (start, end)) in place.into_iter().zip([(A0, A2), (A1, A3)]) {
        p.put(addi(start, place, -margin));
        p.put(addi(end, place, side + margin));
    }
    for (size, ends) in [(WIDTH, [A0, A2]), (HEIGHT, [A1, A3])] {
        constant(p, T0, size);
        ends.into_iter().for_each(|end| clamp(p, end, T0));
    }
    p.jump(RA, draw);
}

/// Draws the columns from `a0` to `a2`, without it, of the lines from `a1` to `a3`, as the
/// [definition](crate::Scene::pixel) says. Keeps `a5`.
pub(super) fn draw_rectangle(p: &mut Program) {
    let (x, y, address, colour) = (T0, A1, T2, T3);
    p.li(S9, GROUND.into());
    p.li(S10, LIGHT_SQUARE.into());
    p.li(S11, WHITE.into());
    let line = p.here();
    constant(p, T1, WIDTH);
    p.put(mul(address, y, T1));
    p.put(add(address, address, A0));
    p.put(slli(address, address, 2));
    p.li(T1, VRAM);
    p.put(add(address, address, T1));
    p.put(addi(x, A0, 0));
    let pixel = p.here();
    ground(p, [x, y], colour);
    ball(p, [x, y], colour);
    lens(p, [x, y], colour);
    p.put(sw(colour, 0, address));
    p.put(addi(address, address, 4));
    p.put(addi(x, x, 1));
    p.branch(Ltu, x, A2, pixel);
    p.put(addi(y, y, 1));
    p.branch(Ltu, y, A3, line);
    p.put(jalr(ZERO, 0, RA));
}

/// Sets the colour of the ground.
fn ground(p: &mut Program, [x, y]: [u8; 2], colour: u8) {
    p.put(xor(T4, x, y));
    p.put(srli(T4, T4, 5));
    p.put(andi(T4, T4, 1));
    p.put(sub(T4, ZERO, T4));
    p.put(and(T4, T4, S10));
    p.put(add(colour, S9, T4));
    for (place, to) in [(x, 16), (y, 8)] {
        p.put(srli(T4, place, 3));
        p.put(slli(T4, T4, to));
        p.put(add(colour, colour, T4));
    }
    p.put(add(T4, x, y));
    p.put(srli(T4, T4, 4));
    p.put(add(colour, colour, T4));
}

/// Replaces it by the ball's where that is.
fn ball(p: &mut Program, [x, y]: [u8; 2], colour: u8) {
    let outside = p.label();
    // The squares of both distances, from the centre and then from the light, are added in t4.
    let square = |p: &mut Program| {
        p.put(mul(T4, T5, T5));
        p.put(mul(T1, T6, T6));
        p.put(add(T4, T4, T1));
    };
    p.put(sub(T5, x, S3));
    p.put(addi(T5, T5, -RADIUS));
    p.put(sub(T6, y, S4));
    p.put(addi(T6, T6, -RADIUS));
    square(p);
    constant(p, T1, RADIUS * RADIUS);
    p.branch(Geu, T4, T1, outside);
    p.put(addi(T5, T5, LIGHT));
    p.put(addi(T6, T6, LIGHT));
    square(p);
    constant(p, T1, DARK);
    p.put(sub(T4, T1, T4));
    p.put(srli(T4, T4, 3));
    p.li(colour, BALL.into());
    p.put(slli(T5, T4, 16));
    p.put(add(colour, colour, T5));
    p.put(srli(T4, T4, 1));
    p.put(slli(T4, T4, 8));
    p.put(add(colour, colour, T4));
    p.bind(outside);
}

/// Inverts it within the lens, or replaces it by its border's.
fn lens(p: &mut Program, [x, y]: [u8; 2], colour: u8) {
    let (border, outside) = (p.label(), p.label());
    p.put(sub(T5, x, S1));
    p.put(sub(T6, y, S2));
    for (margin, beyond) in [(0, outside), (BORDER, border)] {
        constant(p, T1, SIDE - 2 * margin);
        for place in [T5, T6] {
            p.put(addi(place, place, -margin));
            p.branch(Geu, place, T1, beyond); // what is negative is larger
        }
    }
    p.put(xor(colour, colour, S11));
    p.jump(ZERO, outside);
    p.bind(border);
    p.put(addi(colour, S11, 0));
    p.bind(outside);
}
