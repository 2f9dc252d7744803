//! Writes pictures as PNG.

use std::io::Write;

/// The encoder's error.
pub use ::png::EncodingError as PngError;

use crate::picture::surface::Surface;

/// Writes `surface` as a PNG of 8 bits each of red, green and blue.
///
/// # Errors
///
/// [`PngError`] if writing to `out` fails, or the picture is empty.
pub fn write_png(surface: &Surface, out: impl Write) -> Result<(), PngError> {
    let mut encoder = ::png::Encoder::new(out, surface.width(), surface.height());
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    let bytes = surface.bytes();
    let pixels = bytes.chunks_exact(4);
    let rgb: Vec<u8> = pixels.flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgb)?;
    writer.finish()
}
