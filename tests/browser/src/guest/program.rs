//! The program from its first instruction on, and from frame to frame.

use rv64::assemble::{
    Condition::{Eq, Geu},
    Program, WFI, add, addi, csr, csrrw, ld,
    reg::*,
    remu, sb, sd, sh, sub,
};
use rv64::layout::{CLINT, RAM};

use crate::guest::draw::{draw_around, draw_rectangle};
use crate::guest::moves::{bounce, move_lens, read_keys};
use crate::guest::numbers::constant;
use crate::layout::{FRAME, RAM_BYTES, REGISTERS};
use crate::scene::{HEIGHT, Key, RADIUS, SIDE, STEP, Scene, WIDTH};

/// Of the BAR: the port of the attribute controller, and the VBE registers ("QEMU Standard VGA").
const ATTRIBUTE_CONTROLLER: i32 = 0x400;
const VBE: i32 = 0x500;
/// Shows the picture: bit 5 of the attribute controller's index, "palette address source".
const SHOW: u64 = 0x20;

/// The program, for the start of RAM.
pub fn guest() -> Vec<u8> {
    let mut p = Program::at(RAM);
    let draw = p.label();
    let start = Scene::default();
    p.li(SP, RAM + RAM_BYTES);
    set_mode(&mut p);
    for (register, value) in
        [S1, S2, S3, S4, S5, S6].into_iter().zip([start.lens, start.ball, start.velocity].concat())
    {
        constant(&mut p, register, value);
    }
    for register in [S0, S7, A0, A1] {
        constant(&mut p, register, 0);
    }
    constant(&mut p, A2, WIDTH);
    constant(&mut p, A3, HEIGHT);
    p.jump(RA, draw);
    begin_frames(&mut p);

    let frame = p.here();
    wait(&mut p);
    read_keys(&mut p);
    bounce(&mut p, S3, S5, WIDTH - 2 * RADIUS);
    bounce(&mut p, S4, S6, HEIGHT - 2 * RADIUS);
    let velocity = start.velocity.into_iter().max().unwrap_or(0);
    draw_around(&mut p, draw, [S3, S4], 2 * RADIUS, velocity);
    let still = p.label();
    p.branch(Eq, A5, ZERO, still);
    move_lens(&mut p, S1, Key::Right, Key::Left, WIDTH - SIDE);
    move_lens(&mut p, S2, Key::Down, Key::Up, HEIGHT - SIDE);
    draw_around(&mut p, draw, [S1, S2], SIDE, STEP);
    p.bind(still);
    p.put(addi(S0, S0, 1));
    p.jump(ZERO, frame);

    p.bind(draw);
    draw_rectangle(&mut p);
    p.finish()
}

/// Sets a mode of 32 bits, which clears its memory.
fn set_mode(p: &mut Program) {
    p.li(T0, REGISTERS);
    // Width, height, depth, and that the mode is enabled, with linear video memory.
    for (register, value) in (1..).zip([WIDTH, HEIGHT, 32, 0x41]) {
        constant(p, T1, value);
        p.put(sh(T1, VBE + 2 * register, T0));
    }
    p.li(T1, SHOW);
    p.put(sb(T1, ATTRIBUTE_CONTROLLER, T0));
}

/// Frames are due at multiples of their time. Timer interrupts end `wfi`; none is taken.
fn begin_frames(p: &mut Program) {
    p.li(T0, 1 << 7);
    p.put(csrrw(ZERO, csr::MIE, T0));
    p.li(T0, CLINT + 0xbff8);
    p.put(ld(S8, 0, T0));
    p.li(T0, FRAME);
    p.put(remu(T1, S8, T0));
    p.put(sub(S8, S8, T1));
}

/// Sleeps until the next frame is due.
fn wait(p: &mut Program) {
    let due = p.label();
    p.li(T0, FRAME);
    p.put(add(S8, S8, T0));
    p.li(T0, CLINT + 0x4000);
    p.put(sd(S8, 0, T0));
    p.li(T1, CLINT + 0xbff8);
    let again = p.here();
    p.put(ld(T2, 0, T1));
    p.branch(Geu, T2, S8, due);
    p.put(WFI);
    p.jump(ZERO, again);
    p.bind(due);
}
