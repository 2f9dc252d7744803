//! The picture, as a file and as it should be.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use rv64::layout::{HEIGHT, WIDTH};
use rv64::{Screen, demo};

use crate::AnyError;

/// Writes what a screen shows to a PNG file.
pub fn write(screen: &Screen, file: &Path) -> Result<(), AnyError> {
    let file = BufWriter::new(File::create(file)?);
    let mut encoder = png::Encoder::new(file, u32::try_from(WIDTH)?, u32::try_from(HEIGHT)?);
    encoder.set_color(png::ColorType::Rgb);
    let bytes: Vec<u8> = screen
        .pixels()
        .iter()
        .flat_map(|pixel| {
            let [_, red, green, blue] = pixel.to_be_bytes();
            [red, green, blue]
        })
        .collect();
    encoder.write_header()?.write_image_data(&bytes)?;
    Ok(())
}

/// Compares a screen with the definition of a frame.
pub fn check(screen: &Screen, frame: u64) -> Result<(), AnyError> {
    let places = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
    for ((x, y), pixel) in places.zip(screen.pixels()) {
        if *pixel != demo::pixel(frame, x, y) {
            return Err(format!("pixel {x}, {y} of frame {frame} is {pixel:06x}").into());
        }
    }
    Ok(())
}
