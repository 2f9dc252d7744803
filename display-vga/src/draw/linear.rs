//! Packed pixels. The loops are plain enough for the compiler to make wide instructions
//! of them.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use super::{Buffers, Part};
use crate::damage::Damage;
use crate::mode::linear::{Format, Linear};
use crate::surface::{Rect, Surface};

pub(super) fn draw(
    vram: &RamBlock,
    mode: &Linear,
    part: Part<'_>,
    surface: &mut Surface,
    damage: &mut Damage,
    buffers: &mut Buffers,
) -> Result<u64, RamBlockError> {
    let mut read = 0;
    match part {
        Part::Fresh if mode.format == Format::Bgrx => {
            if mode.stride == mode.line_bytes() {
                vram.read(mode.start, surface.own_mut())?;
            } else {
                for y in 0..mode.height {
                    vram.read(mode.line(y).start, surface.line_mut(y))?;
                }
            }
            read = mode.line_bytes() * u64::from(mode.height);
            damage.add(surface.area());
        }
        Part::Fresh => {
            for y in 0..mode.height {
                read += convert(vram, mode, y, 0..mode.width, buffers)?;
                surface.line_mut(y).copy_from_slice(&buffers.pixels);
            }
            damage.add(surface.area());
        }
        Part::All => {
            for y in 0..mode.height {
                read += convert(vram, mode, y, 0..mode.width, buffers)?;
                update(surface, y, 0, buffers, damage);
            }
        }
        Part::Dirty(dirty, page) => {
            for run in dirty.runs() {
                let bytes = run.start * page.bytes()..run.end * page.bytes();
                for y in mode.lines_in(&bytes) {
                    let columns = mode.pixels_in(y, &bytes);
                    let x = columns.start;
                    read += convert(vram, mode, y, columns, buffers)?;
                    update(surface, y, x, buffers, damage);
                }
            }
        }
    }
    Ok(read)
}

/// Puts the buffer's pixels into line `y` from column `x` on.
fn update(surface: &mut Surface, y: u32, x: u32, buffers: &Buffers, damage: &mut Damage) {
    let changed = surface.update(y, x, &buffers.pixels);
    damage.add(Rect { x: changed.start, y, width: changed.end - changed.start, height: 1 });
}

/// Adds what `part` may have changed of a surface that is video memory itself.
pub(crate) fn damage_only(mode: &Linear, part: Part<'_>, damage: &mut Damage) {
    match part {
        Part::Fresh | Part::All => {
            damage.add(Rect { x: 0, y: 0, width: mode.width, height: mode.height })
        }
        Part::Dirty(dirty, page) => {
            for run in dirty.runs() {
                let bytes = run.start * page.bytes()..run.end * page.bytes();
                let lines = mode.lines_in(&bytes);
                for y in lines {
                    let columns = mode.pixels_in(y, &bytes);
                    let width = columns.end - columns.start;
                    damage.add(Rect { x: columns.start, y, width, height: 1 });
                }
            }
        }
    }
}

/// Leaves the pixels of a part of line `y` in the buffer; returns the bytes read.
fn convert(
    vram: &RamBlock,
    mode: &Linear,
    y: u32,
    columns: Range<u32>,
    buffers: &mut Buffers,
) -> Result<u64, RamBlockError> {
    let Buffers { raw, pixels } = buffers;
    let size = mode.format.bytes();
    let from = mode.line(y).start + u64::from(columns.start) * size;
    let count = (columns.end - columns.start) as usize;
    let into = if mode.format == Format::Bgrx { &mut *pixels } else { &mut *raw };
    into.resize(count * usize::try_from(size).unwrap_or(4), 0);
    vram.read(from, into)?;
    pixels.resize(count * 4, 0);
    let out = pixels.chunks_exact_mut(4);
    match mode.format {
        Format::Bgrx | Format::Planar => {}
        Format::Indexed => out.zip(&*raw).for_each(|(out, index)| {
            let colour = mode.palette.get(usize::from(*index)).copied().unwrap_or(0);
            out.copy_from_slice(&colour.to_le_bytes());
        }),
        Format::Rgb555 => out.zip(raw.chunks_exact(2)).for_each(|(out, pixel)| {
            let value = u32::from(u16::from_le_bytes([pixel[0], pixel[1]]));
            let colour = five(value >> 10) << 16 | five(value >> 5) << 8 | five(value);
            out.copy_from_slice(&colour.to_le_bytes());
        }),
        Format::Rgb565 => out.zip(raw.chunks_exact(2)).for_each(|(out, pixel)| {
            let value = u32::from(u16::from_le_bytes([pixel[0], pixel[1]]));
            let green = value >> 5 & 0x3f;
            let green = green << 2 | green >> 4;
            let colour = five(value >> 11) << 16 | green << 8 | five(value);
            out.copy_from_slice(&colour.to_le_bytes());
        }),
        Format::Bgr => out.zip(raw.chunks_exact(3)).for_each(|(out, pixel)| {
            out.copy_from_slice(&[pixel[0], pixel[1], pixel[2], 0]);
        }),
    }
    Ok(size * count as u64)
}

/// Five bits as eight, the brightest being the brightest.
fn five(value: u32) -> u32 {
    let value = value & 0x1f;
    value << 3 | value >> 2
}
