//! Hextile (RFC 6143, 7.7.4): tiles of 16 pixels to a side, each a background with
//! rectangles on it, or raw.

use crate::output::vnc::encode::tiles::tiles;
use crate::output::vnc::format::Coder;

const TILE: usize = 16;
const RAW: u8 = 1;
const BACKGROUND: u8 = 2;
const FOREGROUND: u8 = 4;
const RECTS: u8 = 8;
const COLOURED: u8 = 16;

/// The colours of the last tile, which the next one can reuse.
#[derive(Default)]
struct Last {
    background: Option<u32>,
    foreground: Option<u32>,
}

pub(super) fn encode(values: &[u32], width: usize, coder: &Coder, out: &mut Vec<u8>) {
    let mut last = Last::default();
    tiles(values, width, TILE, |pixels, width| tile(pixels, width, coder, &mut last, out));
}

fn tile(values: &[u32], width: usize, coder: &Coder, last: &mut Last, out: &mut Vec<u8>) {
    let background = most_common(values);
    let rects = rects(values, width, background);
    // The foreground, if there is only one other colour.
    let foreground = rects.first().map(|rect| rect.colour);
    let coloured = rects.iter().any(|rect| Some(rect.colour) != foreground);
    let begin = out.len();

    let mut kind = 0;
    if last.background != Some(background) {
        kind |= BACKGROUND;
    }
    if !rects.is_empty() {
        kind |= RECTS;
        kind |= match coloured {
            true => COLOURED,
            false if last.foreground != foreground => FOREGROUND,
            false => 0,
        };
    }
    out.push(kind);
    if kind & BACKGROUND != 0 {
        coder.put(background, out);
    }
    if let (Some(foreground), true) = (foreground, kind & FOREGROUND != 0) {
        coder.put(foreground, out);
    }
    if !rects.is_empty() {
        // At most 255: at least one of 256 pixels is background.
        out.push(u8::try_from(rects.len()).unwrap_or(u8::MAX));
        for rect in &rects {
            if coloured {
                coder.put(rect.colour, out);
            }
            out.extend_from_slice(&rect.place);
        }
    }
    if out.len() - begin > values.len() * coder.size() {
        out.truncate(begin);
        out.push(RAW);
        coder.put_all(values, out);
        *last = Last::default();
        return;
    }
    last.background = Some(background);
    last.foreground = match (coloured, foreground) {
        (true, _) => None,
        (false, None) => last.foreground,
        (false, some) => some,
    };
}

fn most_common(values: &[u32]) -> u32 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let longest = sorted.chunk_by(|a, b| a == b).max_by_key(|run| run.len());
    longest.and_then(<[u32]>::first).copied().unwrap_or(0)
}

struct Subrect {
    colour: u32,
    /// Column and row, and one less than width and height, four bits each.
    place: [u8; 2],
}

/// Splits the pixels other than background into rectangles: each as wide, then as high as
/// possible.
fn rects(values: &[u32], width: usize, background: u32) -> Vec<Subrect> {
    let mut done = [false; TILE * TILE];
    let mut rects = Vec::new();
    let nibbles = |high: usize, low: usize| u8::try_from(high << 4 | low).unwrap_or(0);
    for at in 0..values.len() {
        let colour = values[at];
        if colour == background || done[at] {
            continue;
        }
        let (x, y) = (at % width, at / width);
        let free = |at: usize, done: &[bool]| values[at] == colour && !done[at];
        let columns = (x..width).take_while(|x| free(y * width + x, &done)).count();
        let row = |y: usize| y * width + x..y * width + x + columns;
        let rows =
            (y..values.len() / width).take_while(|y| row(*y).all(|at| free(at, &done))).count();
        (y..y + rows).for_each(|y| done[row(y)].fill(true));
        rects.push(Subrect { colour, place: [nibbles(x, y), nibbles(columns - 1, rows - 1)] });
    }
    rects
}
