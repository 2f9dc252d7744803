//! The guest program that draws [`Scene`]: each frame it puts the
//! ground back where the balls were, and draws them where they are now.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use ram_block::RamBlock;

use super::programs::assemble;
use crate::frame_port::FramePort;
use crate::guest::DATA;
use crate::scene::Scene;

// The program's data, as offsets from DATA; all are 64-bit numbers.
const WIDTH: i32 = 0;
const HEIGHT: i32 = 8;
const FRAME_BUFFER: i32 = 16;
const BALLS_END: i32 = 24;
const BALLS: i32 = 64;

// A ball, as offsets from its start.
const START_X: i32 = 0;
const START_Y: i32 = 8;
const STEP_X: i32 = 16;
const STEP_Y: i32 = 24;
const SIZE: i32 = 32;
const FALLOFF: i32 = 40;
/// Three bytes: how much to darken red, green and blue.
const DARKEN: i32 = 48;
const X: i32 = 56;
const Y: i32 = 64;
const BALL_LEN: u64 = 72;

/// The program. It shows `scene` in a frame buffer at guest address `frame_buffer`,
/// through the VBE ports, and is paced by a [`FramePort`].
///
/// Puts its data into `ram`, which starts at guest address 0.
///
/// # Panics
///
/// If RAM is smaller than 2 MiB.
pub fn program(ram: &RamBlock, scene: &Scene, frame_buffer: u64) -> Vec<u8> {
    let balls_end = DATA + u64::from(BALLS.unsigned_abs()) + BALL_LEN * scene.balls.len() as u64;
    let mut data = vec![scene.width, scene.height, frame_buffer, balls_end, 0, 0, 0, 0];
    for ball in &scene.balls {
        let [red, green, blue] = ball.darken.map(u64::from);
        let falloff = Scene::falloff(ball);
        let (start, step) = (ball.start, ball.step);
        data.extend([start.0, start.1, step.0, step.1, ball.size, falloff]);
        data.extend([red | green << 8 | blue << 16, 0, 0]);
    }
    let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    ram.write(DATA, &bytes).unwrap();
    assemble(|a| {
        let mut routines = Routines::new(a);
        routines.main(a)?;
        routines.ground_pixel(a)?;
        routines.fill_ground(a)?;
        routines.draw_ball(a)?;
        routines.move_ball(a)
    })
}

/// Register use: rbp the data, rbx a ball, r15 the frame. Everything else is scratch.
struct Routines {
    ground_pixel: CodeLabel,
    fill_ground: CodeLabel,
    draw_ball: CodeLabel,
    move_ball: CodeLabel,
}

impl Routines {
    fn new(a: &mut CodeAssembler) -> Self {
        Self {
            ground_pixel: a.create_label(),
            fill_ground: a.create_label(),
            draw_ball: a.create_label(),
            move_ball: a.create_label(),
        }
    }

    fn main(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut frame, mut wait) = (a.create_label(), a.create_label());
        a.mov(rbp, DATA)?;
        a.xor(r15, r15)?;

        // The mode: resolution, 32 bits per pixel, enabled as a linear frame buffer.
        vbe(a, 1, |a| a.mov(ax, word_ptr(rbp + WIDTH)))?;
        vbe(a, 2, |a| a.mov(ax, word_ptr(rbp + HEIGHT)))?;
        vbe(a, 3, |a| a.mov(ax, 32))?;
        vbe(a, 4, |a| a.mov(ax, 0x41))?;

        // All of the ground: a box of everything.
        a.xor(r10, r10)?;
        a.xor(r11, r11)?;
        a.mov(r12, qword_ptr(rbp + WIDTH))?;
        a.mov(r13, qword_ptr(rbp + HEIGHT))?;
        a.call(self.fill_ground)?;

        a.set_label(&mut frame)?;
        self.each_ball(a, |a, this| {
            a.call(this.move_ball)?;
            a.call(this.draw_ball)
        })?;
        a.mov(dx, u32::from(FramePort::PORT))?;
        a.mov(eax, r15d)?;
        a.out(dx, eax)?; // done with this frame
        a.set_label(&mut wait)?;
        a.in_(eax, dx)?; // the last frame that may be drawn
        a.cmp(eax, r15d)?;
        a.jbe(wait)?;
        self.each_ball(a, |a, this| {
            a.mov(r10, qword_ptr(rbx + X))?;
            a.mov(r11, qword_ptr(rbx + Y))?;
            a.mov(r12, qword_ptr(rbx + SIZE))?;
            a.mov(r13, r12)?;
            a.call(this.fill_ground)
        })?;
        a.inc(r15)?;
        a.jmp(frame)
    }

    fn each_ball(
        &mut self,
        a: &mut CodeAssembler,
        body: impl FnOnce(&mut CodeAssembler, &Self) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let mut next = a.create_label();
        a.lea(rbx, qword_ptr(rbp + BALLS))?;
        a.set_label(&mut next)?;
        body(a, self)?;
        a.add(rbx, i32::try_from(BALL_LEN).unwrap_or(0))?;
        a.cmp(rbx, qword_ptr(rbp + BALLS_END))?;
        a.jb(next)
    }

    /// The ground's colour at column r8 of line r9, in eax. Changes rcx.
    fn ground_pixel(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.ground_pixel)?;
        a.mov(eax, r8d)?;
        a.xor(eax, r9d)?;
        a.shr(eax, 5)?;
        a.and(eax, 1)?;
        a.imul_3(eax, eax, 0x14)?;
        a.add(eax, 0x50)?;
        for (coordinate, shift, base, place) in [(r9d, 4, 0x18, 8), (r8d, 6, 0x10, 16)] {
            a.mov(ecx, coordinate)?;
            a.shr(ecx, shift)?;
            a.add(ecx, base)?;
            a.movzx(ecx, cl)?;
            a.shl(ecx, place)?;
            a.or(eax, ecx)?;
        }
        a.ret()
    }

    /// rdi = the address of column r8 of line r9.
    fn pixel_address(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.mov(rdi, r9)?;
        a.imul_2(rdi, qword_ptr(rbp + WIDTH))?;
        a.add(rdi, r8)?;
        a.shl(rdi, 2)?;
        a.add(rdi, qword_ptr(rbp + FRAME_BUFFER))
    }

    /// Calls `pixel` for each pixel of the box of r12 columns and r13 lines from column
    /// r10 of line r11: r8 its column, r9 its line, rdi its address.
    fn each_pixel(
        a: &mut CodeAssembler,
        pixel: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let (mut line, mut column) = (a.create_label(), a.create_label());
        a.mov(r9, r11)?;
        a.set_label(&mut line)?;
        a.mov(r8, r10)?;
        Self::pixel_address(a)?;
        a.set_label(&mut column)?;
        pixel(a)?;
        a.add(rdi, 4)?;
        a.inc(r8)?;
        a.lea(rax, qword_ptr(r10 + r12))?;
        a.cmp(r8, rax)?;
        a.jb(column)?;
        a.inc(r9)?;
        a.lea(rax, qword_ptr(r11 + r13))?;
        a.cmp(r9, rax)?;
        a.jb(line)
    }

    /// Draws the ground in the box of r12 columns and r13 lines from column r10 of line
    /// r11.
    fn fill_ground(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.fill_ground)?;
        Self::each_pixel(a, |a| {
            a.call(self.ground_pixel)?;
            a.mov(dword_ptr(rdi), eax)
        })?;
        a.ret()
    }

    /// Draws the ball rbx at its place.
    fn draw_ball(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut outside, mut lit) = (a.create_label(), a.create_label());
        a.set_label(&mut self.draw_ball)?;
        a.mov(r10, qword_ptr(rbx + X))?;
        a.mov(r11, qword_ptr(rbx + Y))?;
        a.mov(r12, qword_ptr(rbx + SIZE))?;
        a.mov(r13, r12)?;
        Self::each_pixel(a, |a| {
            // rax, rdx: half pixels from the centre; outside of the disc nothing is drawn.
            for (distance, at, from) in [(rax, r8, r10), (rdx, r9, r11)] {
                a.mov(distance, at)?;
                a.sub(distance, from)?;
                a.lea(distance, qword_ptr(distance * 2 + 1))?;
                a.sub(distance, r12)?;
            }
            a.mov(rcx, rax)?;
            a.imul_2(rcx, rax)?;
            a.mov(rsi, rdx)?;
            a.imul_2(rsi, rdx)?;
            a.add(rcx, rsi)?;
            a.mov(rsi, r12)?;
            a.imul_2(rsi, r12)?;
            a.cmp(rcx, rsi)?;
            a.ja(outside)?;

            // rax: how dark it is at this distance from the light, at most 223.
            a.mov(rcx, r12)?;
            a.shr(rcx, 1)?;
            a.add(rax, rcx)?;
            a.add(rdx, rcx)?;
            a.imul_2(rax, rax)?;
            a.imul_2(rdx, rdx)?;
            a.add(rax, rdx)?;
            a.imul_2(rax, qword_ptr(rbx + FALLOFF))?;
            a.shr(rax, 16)?;
            a.cmp(rax, 223)?;
            a.jbe(lit)?;
            a.mov(eax, 223)?;
            a.set_label(&mut lit)?;
            a.mov(edx, 255)?;
            a.sub(edx, eax)?;

            // esi: the light, darkened for each colour, the red one highest.
            a.xor(esi, esi)?;
            for colour in 0..3 {
                a.mov(cl, byte_ptr(rbx + DARKEN + colour))?;
                a.mov(eax, edx)?;
                a.shr(eax, cl)?;
                a.shl(esi, 8)?;
                a.or(esi, eax)?;
            }
            a.mov(dword_ptr(rdi), esi)?;
            a.set_label(&mut outside)?;
            a.zero_bytes() // a label needs something behind it
        })?;
        a.ret()
    }

    /// Puts the ball rbx where it is in frame r15: to and fro between the edges.
    fn move_ball(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.move_ball)?;
        for (start, step, length, place) in
            [(START_X, STEP_X, WIDTH, X), (START_Y, STEP_Y, HEIGHT, Y)]
        {
            let mut forth = a.create_label();
            a.mov(rcx, qword_ptr(rbp + length))?;
            a.sub(rcx, qword_ptr(rbx + SIZE))?; // the range
            a.mov(rax, qword_ptr(rbx + step))?;
            a.imul_2(rax, r15)?;
            a.add(rax, qword_ptr(rbx + start))?;
            a.xor(edx, edx)?;
            a.lea(rsi, qword_ptr(rcx * 2))?;
            a.div(rsi)?; // rdx: how far on the way forth and back
            a.mov(rax, rdx)?;
            a.cmp(rdx, rcx)?;
            a.jb(forth)?;
            a.mov(rax, rsi)?;
            a.sub(rax, rdx)?;
            a.set_label(&mut forth)?;
            a.mov(qword_ptr(rbx + place), rax)?;
        }
        a.ret()
    }
}

/// Writes a VBE register with what `value` leaves in ax.
fn vbe(
    a: &mut CodeAssembler,
    register: u32,
    value: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    a.mov(dx, 0x1ce)?;
    a.mov(ax, register)?;
    a.out(dx, ax)?;
    a.mov(dx, 0x1cf)?;
    value(a)?;
    a.out(dx, ax)
}
