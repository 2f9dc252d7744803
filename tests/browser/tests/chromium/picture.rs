//! Pictures, those of a native run among them.

use std::io::Cursor;

use browser::layout::FRAME;
use browser::{Computer, Key, Scene};

/// Red, green, blue and opacity of each pixel.
pub struct Picture {
    pub size: [u32; 2],
    pub bytes: Vec<u8>,
}

impl Picture {
    /// The blue of a pixel.
    pub fn pixel(&mut self, x: u32, y: u32) -> &mut u8 {
        &mut self.bytes[(y * self.size[0] + x) as usize * 4 + 2]
    }
}

/// How two pictures differ, if they do.
pub fn differences(found: &Picture, wanted: &Picture) -> Option<String> {
    if found.size != wanted.size {
        return Some(format!("{:?} pixels, {:?} are wanted", found.size, wanted.size));
    }
    assert_eq!(found.bytes.len(), wanted.bytes.len());
    let pixels = || found.bytes.chunks_exact(4).zip(wanted.bytes.chunks_exact(4));
    let differ = pixels().enumerate().filter(|(_, (found, wanted))| found != wanted);
    let (at, (one, other)) = differ.clone().next()?;
    let [x, y] = [at % found.size[0] as usize, at / found.size[0] as usize];
    let (count, all) = (differ.count(), pixels().count());
    Some(format!("{count} of {all} pixels: {x}, {y} is {one:?}, {other:?} is wanted"))
}

/// The page's machine without the page, and the definition of what it should show.
pub struct Native {
    pub computer: Computer,
    pub scene: Scene,
    frames: u64,
    down: Vec<Key>,
    pressed: Vec<Key>,
}

impl Native {
    pub fn new() -> Self {
        let (computer, scene) = (Computer::new().unwrap(), Scene::default());
        Self { computer, scene, frames: 0, down: Vec::new(), pressed: Vec::new() }
    }

    pub fn go(&mut self, frames: u64) {
        for _ in 0..frames {
            self.computer.run_for(FRAME);
            self.computer.refresh().unwrap();
            // In the first one the guest draws the first picture.
            if self.frames > 0 {
                self.scene.step(&[&self.down[..], &self.pressed].concat());
                self.pressed.clear();
            }
            self.frames += 1;
        }
    }

    pub fn key(&mut self, key: Key, is_down: bool) {
        self.computer.key(key as u32, is_down).unwrap();
        self.down.retain(|other| *other != key);
        if is_down {
            self.down.push(key);
            self.pressed.push(key);
        }
    }

    /// What it shows, which is what was defined.
    pub fn picture(&self) -> Picture {
        let canvas = self.computer.canvas();
        let picture = Picture { size: canvas.size(), bytes: canvas.bytes().to_vec() };
        let places = (0..480).flat_map(|y| (0..640).map(move |x| (x, y)));
        let pixel = |(x, y)| (self.scene.pixel(x, y) << 8 | 0xff).to_be_bytes();
        let defined = Picture { size: [640, 480], bytes: places.flat_map(pixel).collect() };
        assert_eq!(differences(&picture, &defined), None, "the native run and the definition");
        picture
    }

    /// The PNG file of it, read back.
    pub fn png(&self) -> Picture {
        let mut file = Vec::new();
        display_vga::write_png(self.computer.screen().surface(), &mut file).unwrap();
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let pixels = bytes.chunks_exact(3);
        let bytes = pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 0xff]).collect();
        Picture { size: [info.width, info.height], bytes }
    }
}
