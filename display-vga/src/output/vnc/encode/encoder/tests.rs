//! All encodings in all formats, checked by an independent decoder.

#[path = "../../../../../tests/common/rfb_decoder.rs"]
mod decoder;

use super::*;
use crate::picture::surface::Surface;
use decoder::{Decoder, Format};
use proptest::prelude::*;

const ENCODINGS: [Encoding; 5] =
    [Encoding::Raw, Encoding::Hextile, Encoding::Zlib, Encoding::Tight, Encoding::Zrle];

/// Pixels as guests draw them, from one colour to noise.
fn pixels(kind: usize, seed: u64, at: usize) -> [u8; 3] {
    let noise = |seed: u64| {
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd134_2543_de82_ef95);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()
    };
    let colour = |number: u64| {
        let [r, g, b, ..] = noise(seed ^ number << 8);
        [r, g, b]
    };
    let (line, column) = (at as u64 / 100, at as u64 % 100);
    let random = u64::from(noise(seed.wrapping_add(at as u64))[0]);
    match kind {
        0 => colour(0),
        1 => colour(u64::from(random < 8)),
        2 => colour(random % 2),
        3 => colour(column / 9 % 4),
        4 => colour(line / 5 + column / 50 * 100),
        5 => colour(random % 14),
        6 => colour(random % 100),
        7 => colour(column / 2 + line * 50),
        8 => colour(random % 250),
        _ => colour(at as u64),
    }
}

fn formats() -> impl Strategy<Value = Format> {
    let layout = prop::sample::select(vec![
        (32, 24, [255, 255, 255], [16, 8, 0]),
        (32, 24, [255, 255, 255], [0, 8, 16]),
        (32, 24, [255, 255, 255], [24, 16, 8]),
        (32, 32, [255, 255, 255], [16, 8, 0]),
        (32, 24, [255, 255, 255], [24, 16, 0]),
        (32, 30, [1023, 1023, 1023], [20, 10, 0]),
        (32, 15, [31, 31, 31], [18, 13, 8]),
        (16, 16, [31, 63, 31], [11, 5, 0]),
        (16, 16, [31, 63, 31], [0, 5, 11]),
        (16, 15, [31, 31, 31], [10, 5, 0]),
        (16, 12, [15, 15, 15], [12, 8, 4]),
        (8, 8, [7, 7, 3], [0, 3, 6]),
        (8, 8, [7, 7, 3], [5, 2, 0]),
        (8, 8, [5, 5, 2], [0, 3, 6]),
        (8, 3, [1, 1, 1], [7, 3, 0]),
        (8, 6, [3, 0, 3], [0, 0, 4]),
    ]);
    (layout, any::<bool>()).prop_map(|((bits, depth, max, shift), big_endian)| Format {
        bits,
        depth,
        big_endian,
        true_colour: true,
        max,
        shift,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn a_viewer_reads_what_was_written(
        (width, height) in (1..150u32, 1..140u32),
        kinds in prop::collection::vec((0..10usize, any::<u64>()), 1..4),
        choices in prop::collection::vec((0..ENCODINGS.len(), formats(), 0..10u8), 1..5),
    ) {
        let mut decoder = Decoder::default();
        let mut encoder = Encoder::new(PixelFormat::NATIVE);
        for ((encoding, format, level), (kind, seed)) in choices.iter().zip(kinds.iter().cycle()) {
            let mut surface = Surface::new(width, height);
            for (at, pixel) in surface.own_mut().chunks_mut(4).enumerate() {
                let [r, g, b] = pixels(*kind, *seed, at);
                pixel.copy_from_slice(&[b, g, r, 0xee]);
            }
            let mut frame = Frame::new((width, height));
            frame.publish(&surface, &[surface.area()]);
            encoder.set_format(PixelFormat::parse(&format.bytes()).unwrap());
            encoder.set_level(*level);
            let encoding = ENCODINGS[*encoding];
            let mut whole = Vec::new();
            for area in pieces(&frame.area()) {
                let mut out = Vec::new();
                encoder.encode(encoding, &frame, &area, &mut out);
                let mut rest = &out[..];
                let size = (area.width as usize, area.height as usize);
                let pixels = decoder.rect(encoding.number(), format, size, &mut rest);
                prop_assert!(rest.is_empty());
                let expected: Vec<u32> = (area.y..area.bottom())
                    .flat_map(|y| (area.x..area.right()).map(move |x| (x, y)))
                    .map(|(x, y)| format.value(surface.pixel(x, y)))
                    .collect();
                prop_assert!(pixels == expected, "{encoding:?} in {format:?}, pixels of kind \
                    {kind}");
                whole.extend(out);
            }
            // No encoding is longer than raw pixels, except for a few bytes per tile.
            let raw = (width * height) as usize * usize::from(format.bits / 8);
            prop_assert!(whole.len() <= raw + raw / 50 + 200, "{encoding:?}: {} of {raw}",
                whole.len());
        }
    }

    #[test]
    fn pieces_cover_an_area_once(x in 0..9u32, y in 0..9u32, width in 1..9000u32,
        height in 1..5000u32) {
        let area = Rect { x, y, width, height };
        let mut pixels = 0;
        for piece in pieces(&area) {
            prop_assert!(piece.width <= PIECE_WIDTH
                && piece.pixels() <= u64::from(PIECE_WIDTH * TILE));
            prop_assert!(area.hull(&piece) == area);
            pixels += piece.pixels();
        }
        prop_assert_eq!(pixels, area.pixels());
        let all: Vec<Rect> = pieces(&area).collect();
        if all.len() < 40 {
            let apart = |a: &Rect, b: &Rect| a == b || !a.intersects(b);
            prop_assert!(all.iter().all(|a| all.iter().all(|b| apart(a, b))));
        }
    }
}

/// Typical pictures can be compressed: text on a background, and areas of one colour.
#[test]
fn plain_pictures_are_small() {
    let mut surface = Surface::new(640, 480);
    for (at, pixel) in surface.own_mut().chunks_mut(4).enumerate() {
        let [r, g, b] = pixels(3, 5, at % 640 / 40 + at / 640 / 16 * 100);
        pixel.copy_from_slice(&[b, g, r, 0]);
    }
    let mut frame = Frame::new((640, 480));
    frame.publish(&surface, &[surface.area()]);
    for encoding in &ENCODINGS[1..] {
        let mut encoder = Encoder::new(PixelFormat::NATIVE);
        let mut out = Vec::new();
        for area in pieces(&frame.area()) {
            encoder.encode(*encoding, &frame, &area, &mut out);
        }
        assert!(out.len() * 20 < 640 * 480 * 4, "{encoding:?}: {} bytes", out.len());
    }
}

proptest! {
    #[test]
    fn each_part_of_a_stream_is_whole(
        parts in prop::collection::vec((0..2usize, 1..90_000usize), 1..6), level in 0..10u8) {
        let mut stream = Zlib::new(level);
        let mut inflate = decoder::Inflate::default();
        let mut out = Vec::new();
        for (kind, length) in parts {
            let plain: Vec<u8> = (0..length).map(|at| pixels(kind * 9, 7, at)[0]).collect();
            out.clear();
            stream.append(&plain, &mut out);
            prop_assert!(inflate.read(&out) == plain);
        }
    }
}
