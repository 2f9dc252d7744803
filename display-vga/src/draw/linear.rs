//! Draws packed pixels. The loops are simple, so that the compiler can vectorize them.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use crate::draw::part::{Buffers, DrawnPart};
use crate::draw::row_copy::RowCopy;
use crate::modes::linear::{Format, Linear};
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};

pub(super) fn draw(
    vram: &RamBlock,
    mode: &Linear,
    part: DrawnPart<'_>,
    surface: &mut Surface,
    damage: &mut Damage,
    buffers: &mut Buffers,
) -> Result<u64, RamBlockError> {
    let mut read = 0;
    match part {
        DrawnPart::Fresh if mode.format == Format::Bgrx => {
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
        DrawnPart::Fresh => {
            for y in 0..mode.height {
                read += convert(vram, mode, y, 0..mode.width, buffers)?;
                surface.line_mut(y).copy_from_slice(&buffers.pixels);
            }
            damage.add(surface.area());
        }
        DrawnPart::All | DrawnPart::Dirty(..) if mode.format == Format::Bgrx => {
            let mut copied = RowCopy::new(vram, surface);
            for (y, columns) in lines(mode, part) {
                let (x, width) = (columns.start, columns.end - columns.start);
                let from = mode.line(y).start + u64::from(x) * mode.format.bytes();
                damage.add(in_line(y, copied.add((x, y), width, from)?));
                read += u64::from(width) * mode.format.bytes();
            }
            copied.copy()?;
        }
        DrawnPart::All | DrawnPart::Dirty(..) => {
            for (y, columns) in lines(mode, part) {
                let x = columns.start;
                read += convert(vram, mode, y, columns, buffers)?;
                damage.add(in_line(y, surface.update(y, x, &buffers.pixels)));
            }
        }
    }
    Ok(read)
}

/// The lines of a part, and the columns of each.
fn lines<'a>(
    mode: &'a Linear,
    part: DrawnPart<'a>,
) -> impl Iterator<Item = (u32, Range<u32>)> + 'a {
    let (all, dirty) = match part {
        DrawnPart::Fresh | DrawnPart::All => (Some(mode.visible()), None),
        DrawnPart::Dirty(dirty, page) => (None, Some((dirty, page))),
    };
    let dirty = dirty.into_iter().flat_map(|(dirty, page)| {
        dirty.runs().map(move |run| run.start * page.bytes()..run.end * page.bytes())
    });
    all.into_iter()
        .chain(dirty)
        .flat_map(move |bytes| mode.lines_in(&bytes).map(move |y| (y, mode.pixels_in(y, &bytes))))
}

fn in_line(y: u32, columns: Range<u32>) -> Rect {
    Rect { x: columns.start, y, width: columns.end - columns.start, height: 1 }
}

/// Adds the damage of `part`, for a surface that is video memory itself.
pub(crate) fn damage_only(mode: &Linear, part: DrawnPart<'_>, damage: &mut Damage) {
    lines(mode, part).for_each(|(y, columns)| damage.add(in_line(y, columns)));
}

/// Converts the pixels of a part of line `y` from another format than the surface's, into
/// `buffers.pixels`; returns the bytes read.
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
    raw.resize(count * usize::try_from(size).unwrap_or(4), 0);
    vram.read(from, raw)?;
    pixels.resize(count * 4, 0);
    match mode.format {
        Format::Bgrx | Format::Planar => {} // not converted here: see `row_copy` and `planes`
        Format::Indexed => each_pixel(raw, pixels, |[index]| {
            mode.palette.get(usize::from(index)).copied().unwrap_or(0)
        }),
        Format::Rgb555 => each_pixel(raw, pixels, |pixel| {
            let value = u32::from(u16::from_le_bytes(pixel));
            five(value >> 10) << 16 | five(value >> 5) << 8 | five(value)
        }),
        Format::Rgb565 => each_pixel(raw, pixels, |pixel| {
            let value = u32::from(u16::from_le_bytes(pixel));
            let green = value >> 5 & 0x3f;
            let green = green << 2 | green >> 4;
            five(value >> 11) << 16 | green << 8 | five(value)
        }),
        Format::Bgr => {
            each_pixel(raw, pixels, |[blue, green, red]| u32::from_le_bytes([blue, green, red, 0]));
        }
    }
    Ok(size * count as u64)
}

/// Converts pixels of `N` bytes, in blocks of arrays, which the compiler can vectorize.
fn each_pixel<const N: usize>(raw: &[u8], pixels: &mut [u8], convert: impl Fn([u8; N]) -> u32) {
    const BLOCK: usize = 16;
    let pixel = |raw: &[u8]| {
        let mut bytes = [0; N];
        bytes.copy_from_slice(raw);
        convert(bytes)
    };
    let blocks = raw.len() / (N * BLOCK);
    let (raw, raw_rest) = raw.split_at(blocks * N * BLOCK);
    let (out, out_rest) = pixels.split_at_mut(blocks * 4 * BLOCK);
    for (out, raw) in out.chunks_exact_mut(4 * BLOCK).zip(raw.chunks_exact(N * BLOCK)) {
        let mut colours = [0; BLOCK];
        for (n, colour) in colours.iter_mut().enumerate() {
            *colour = pixel(&raw[n * N..][..N]);
        }
        let mut bytes = [0; 4 * BLOCK];
        for (n, colour) in colours.iter().enumerate() {
            bytes[n * 4..][..4].copy_from_slice(&colour.to_le_bytes());
        }
        out.copy_from_slice(&bytes);
    }
    for (out, raw) in out_rest.chunks_exact_mut(4).zip(raw_rest.chunks_exact(N)) {
        out.copy_from_slice(&pixel(raw).to_le_bytes());
    }
}

/// Widens five bits to eight; 31 becomes 255.
fn five(value: u32) -> u32 {
    let value = value & 0x1f;
    value << 3 | value >> 2
}
