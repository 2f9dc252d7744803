//! Draws pixels that are spread over the four planes.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use crate::draw::part::{Buffers, DrawnPart};
use crate::modes::planes::{Planes, Shift};
use crate::modes::raster::ScanLine;
use crate::picture::damage::Damage;
use crate::picture::surface::{Rect, Surface};

/// The bits of a byte, one per byte: bit 7 in the first, bit 0 in the last.
static SPREAD: [u64; 256] = spread();

const fn spread() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            if byte >> (7 - bit) & 1 != 0 {
                table[byte] |= 1 << (8 * bit);
            }
            bit += 1;
        }
        byte += 1;
    }
    table
}

pub(super) fn draw(
    vram: &RamBlock,
    mode: &Planes,
    part: DrawnPart<'_>,
    surface: &mut Surface,
    damage: &mut Damage,
    buffers: &mut Buffers,
) -> Result<u64, RamBlockError> {
    let mut read = 0;
    // The line that is in the buffer: the next one often shows the same (doubled scan lines).
    let mut held: Option<(u32, Range<u32>)> = None;
    for y in 0..surface.height() {
        let line = mode.raster.line(y);
        let count = mode.addresses(surface.width(), line.pan);
        let addresses = match part {
            DrawnPart::Fresh | DrawnPart::All => 0..count,
            DrawnPart::Dirty(dirty, page) => {
                let touched = |from: u64, to: u64| {
                    dirty.any_dirty(page.pages_spanned(from * 4, (to - from) * 4))
                };
                touched_addresses(mode, line.address, count, page.bytes() / 4, touched)
            }
        };
        if addresses.is_empty() {
            continue;
        }
        let wanted = (line.address, addresses.clone());
        if held.as_ref() != Some(&wanted) {
            expand(vram, mode, line, addresses.clone(), buffers)?;
            read += u64::from(addresses.end - addresses.start) * 4;
            held = Some(wanted);
        }
        // The dots of the addresses, clipped to the picture.
        let dots = mode.dots * mode.shift.pixels();
        let from = (addresses.start * dots).max(line.pan);
        let to = (addresses.end * dots).min(surface.width() + line.pan);
        let skipped = (from - addresses.start * dots) as usize;
        let pixels = &buffers.pixels[skipped * 4..][..(to - from) as usize * 4];
        let changed = surface.update(y, from - line.pan, pixels);
        let width = changed.end - changed.start;
        damage.add(Rect { x: changed.start, y, width, height: 1 });
    }
    Ok(read)
}

/// The range of addresses, from the first to the last one for which `touched` is true, among
/// `count` from `start` on, which wrap; checks `grain` addresses (a page) at a time.
fn touched_addresses(
    mode: &Planes,
    start: u32,
    count: u32,
    grain: u64,
    touched: impl Fn(u64, u64) -> bool,
) -> Range<u32> {
    let mut found = 0..0;
    let mut at = 0;
    while at < count {
        let address = u64::from(start.wrapping_add(at) & mode.raster.mask);
        let to_grain = grain - address % grain;
        // Addresses wrap between two pages, or within the only one.
        let len = u64::from(count - at).min(to_grain);
        let end = at + u32::try_from(len).unwrap_or(count - at);
        if touched(address, address + len) {
            found = if found.is_empty() { at..end } else { found.start..end };
        }
        at = end;
    }
    found
}

/// Expands the dots of a part of a line into `buffers.pixels`; `addresses` count from its start.
fn expand(
    vram: &RamBlock,
    mode: &Planes,
    line: ScanLine,
    addresses: Range<u32>,
    buffers: &mut Buffers,
) -> Result<(), RamBlockError> {
    let Buffers { raw, pixels } = buffers;
    let count = addresses.end - addresses.start;
    raw.resize(count as usize * 4, 0);
    let first = line.address.wrapping_add(addresses.start) & mode.raster.mask;
    let before_wrap = count.min(mode.raster.mask - first + 1);
    let (upper, lower) = raw.split_at_mut(before_wrap as usize * 4);
    vram.read(u64::from(first) * 4, upper)?;
    vram.read(0, lower)?;
    pixels.resize((count * mode.shift.pixels() * mode.dots) as usize * 4, 0);
    match mode.dots {
        1 => expand_by::<1>(mode, raw, pixels),
        2 => expand_by::<2>(mode, raw, pixels),
        _ => expand_by::<4>(mode, raw, pixels),
    }
    Ok(())
}

/// With `DOTS` dots a pixel.
fn expand_by<const DOTS: usize>(mode: &Planes, raw: &[u8], pixels: &mut [u8]) {
    let palette = &mode.palette;
    let put = |out: &mut [u8], numbers: &[u8]| {
        for (out, number) in out.chunks_exact_mut(4 * DOTS).zip(numbers) {
            let colour = palette.get(usize::from(*number)).copied().unwrap_or(0).to_le_bytes();
            out.chunks_exact_mut(4).for_each(|dot| dot.copy_from_slice(&colour));
        }
    };
    let out = pixels.chunks_exact_mut(4 * DOTS * mode.shift.pixels() as usize);
    for (out, planes) in out.zip(raw.chunks_exact(4)) {
        match mode.shift {
            Shift::Single => {
                let bit = |plane: usize| SPREAD[usize::from(planes[plane])] << plane;
                put(out, &(bit(0) | bit(1) | bit(2) | bit(3)).to_le_bytes());
            }
            Shift::Interleaved => {
                let numbers: [u8; 8] = std::array::from_fn(|pixel| {
                    let two_bits = |plane: usize| planes[plane] >> (6 - pixel % 4 * 2) & 3;
                    two_bits(pixel / 4) | two_bits(pixel / 4 + 2) << 2
                });
                put(out, &numbers);
            }
            Shift::Packed => put(out, planes),
        }
    }
}
