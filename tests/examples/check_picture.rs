//! Checks a PNG that `vga_refresh` wrote against the scene's definition.
//!
//! `cargo run --release --example check_picture -- FILE --frame N`

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Parser;
use machines::demo::AnyError;
use machines::scene::Scene;

/// Compares every pixel of a picture with the scene's definition.
#[derive(Parser)]
struct Options {
    /// The picture
    file: PathBuf,
    /// The frame that it should show
    #[arg(long)]
    frame: u64,
}

fn main() -> Result<(), AnyError> {
    let options = Options::parse();
    let mut reader = png::Decoder::new(BufReader::new(File::open(&options.file)?)).read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().ok_or("the picture is too large")?];
    let info = reader.next_frame(&mut bytes)?;
    if (info.color_type, info.bit_depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return Err("the picture has not 8 bits each of red, green and blue".into());
    }
    let scene = Scene::new(info.width.into(), info.height.into());
    let pixel = |x: u64, y: u64| {
        let at = usize::try_from((y * scene.width + x) * 3).unwrap_or(usize::MAX);
        [bytes[at], bytes[at + 1], bytes[at + 2]]
    };
    match scene.first_difference(options.frame, pixel) {
        Some(difference) => Err(difference.into()),
        None => {
            println!("{} pixels are as defined", scene.width * scene.height);
            Ok(())
        }
    }
}
