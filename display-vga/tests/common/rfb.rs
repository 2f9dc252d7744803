//! A strict VNC viewer by RFC 6143: keeps the pixels that it was sent.
#![allow(dead_code, unreachable_pub)] // each test uses a part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use des::Des;
use des::cipher::{Array, BlockCipherEncrypt, KeyInit};
use display_vga::{Rect, Surface};

pub use super::rfb_decoder::{Decoder, Format};

pub const RAW: i32 = 0;
pub const COPY_RECT: i32 = 1;
pub const HEXTILE: i32 = 5;
pub const ZLIB: i32 = 6;
pub const TIGHT: i32 = 7;
pub const ZRLE: i32 = 16;
pub const DESKTOP_SIZE: i32 = -223;
pub const QEMU_KEYS: i32 = -258;
pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
pub const ENCODINGS: [i32; 5] = [RAW, HEXTILE, ZLIB, TIGHT, ZRLE];

/// Longer than any answer takes.
pub fn patience() -> Duration {
    crate::deadline::seconds(30)
}

pub struct Viewer {
    pub stream: TcpStream,
    decoder: Decoder,
    pub size: (u32, u32),
    pub name: String,
    pub format: Format,
    /// A pixel value each, by lines.
    pub pixels: Vec<u32>,
    /// The colour map: red, green and blue of 16 bits, if the server has sent it.
    pub colours: Vec<[u16; 3]>,
}

pub fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
    Rect { x, y, width, height }
}

fn short(number: u32) -> [u8; 2] {
    u16::try_from(number).unwrap().to_be_bytes()
}

impl Viewer {
    /// Connects, and goes through the handshake of 3.8 without a password.
    pub fn connect(address: SocketAddr) -> Self {
        Self::start(address, b"RFB 003.008\n", None).expect("to be let in")
    }

    /// Goes through a handshake; the reason if it is refused.
    pub fn start(
        address: SocketAddr,
        version: &[u8; 12],
        password: Option<&str>,
    ) -> Result<Self, String> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        let mut viewer = Self {
            stream,
            decoder: Decoder::default(),
            size: (0, 0),
            name: String::new(),
            format: Format::BGRX,
            pixels: Vec::new(),
            colours: Vec::new(),
        };
        assert_eq!(&viewer.take(12), b"RFB 003.008\n");
        viewer.send(version);
        let minor = version[10];
        let wanted = if password.is_some() { 2 } else { 1 };
        if minor == b'3' {
            assert_eq!(viewer.long(), wanted);
        } else {
            let count = viewer.take(1)[0];
            let types = viewer.take(count.into());
            let wanted = u8::try_from(wanted).unwrap();
            assert!(types.contains(&wanted), "{types:?}");
            viewer.send(&[wanted]);
        }
        if let Some(password) = password {
            let challenge = viewer.take(16);
            let mut key = [0; 8];
            key.iter_mut().zip(password.bytes()).for_each(|(key, byte)| *key = byte.reverse_bits());
            let cipher = Des::new(&Array(key));
            for block in challenge.chunks(8) {
                let mut block = Array(<[u8; 8]>::try_from(block).unwrap());
                cipher.encrypt_block(&mut block);
                viewer.send(&block);
            }
        }
        if (password.is_some() || minor == b'8') && viewer.long() != 0 {
            let length = if minor == b'8' { viewer.long() } else { 0 };
            return Err(String::from_utf8(viewer.take(length)).unwrap());
        }
        viewer.send(&[1]);
        let (width, height) = (viewer.short(), viewer.short());
        viewer.resize((width, height));
        assert_eq!(viewer.take(16), Format::BGRX.bytes());
        let length = viewer.long();
        viewer.name = String::from_utf8(viewer.take(length)).unwrap();
        Ok(viewer)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server goes on");
        bytes
    }

    fn short(&mut self) -> u32 {
        self.take(2).iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn long(&mut self) -> usize {
        self.take(4).iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    }

    fn resize(&mut self, size: (u32, u32)) {
        self.size = size;
        // The former pixels are lost.
        self.pixels = vec![0xdead_beef; (size.0 * size.1) as usize];
    }

    pub fn all(&self) -> Rect {
        rect(0, 0, self.size.0, self.size.1)
    }

    pub fn set_format(&mut self, format: Format) {
        self.format = format;
        self.send(&[&[0; 4][..], &format.bytes()].concat());
    }

    pub fn set_encodings(&mut self, encodings: &[i32]) {
        self.send(&[2, 0]);
        self.send(&short(u32::try_from(encodings.len()).unwrap()));
        encodings.iter().for_each(|encoding| self.send(&encoding.to_be_bytes()));
    }

    pub fn request(&mut self, incremental: bool, area: Rect) {
        let numbers = [area.x, area.y, area.width, area.height].map(short).concat();
        self.send(&[&[3, incremental.into()][..], &numbers].concat());
    }

    /// Sends an incremental request for the whole picture.
    pub fn ask(&mut self) {
        self.request(true, self.all());
    }

    /// The next update: its rectangles and how they were encoded.
    pub fn update(&mut self) -> Vec<(i32, Rect)> {
        match self.take(1)[0] {
            0 => {}
            1 => {
                self.take(1);
                assert_eq!(self.short(), 0);
                let count = self.short();
                let part = |viewer: &mut Self| u16::try_from(viewer.short()).unwrap();
                self.colours = (0..count).map(|_| [(); 3].map(|()| part(self))).collect();
                return self.update();
            }
            other => panic!("message {other}"),
        }
        self.take(1);
        let count = self.short();
        (0..count).map(|_| self.rectangle()).collect()
    }

    fn rectangle(&mut self) -> (i32, Rect) {
        let [x, y, width, height] = [(); 4].map(|()| self.short());
        let encoding = i32::from_be_bytes(self.take(4).try_into().unwrap());
        let area = rect(x, y, width, height);
        match encoding {
            DESKTOP_SIZE => self.resize((width, height)),
            EXTENDED_DESKTOP_SIZE => {
                assert_eq!(self.take(8), [1, 0, 0, 0, 0, 0, 0, 0]);
                assert_eq!([(); 4].map(|()| self.short()), [0, 0, width, height]);
                assert_eq!(self.long(), 0);
                if (width, height) != self.size {
                    self.resize((width, height));
                }
            }
            QEMU_KEYS => {}
            COPY_RECT => {
                let (from_x, from_y) = (self.short(), self.short());
                let copy: Vec<u32> = (0..height)
                    .flat_map(|y| (0..width).map(move |x| (x, y)))
                    .map(|(x, y)| self.pixels[self.at(from_x + x, from_y + y)])
                    .collect();
                self.put(&area, &copy);
            }
            _ => {
                let size = (width as usize, height as usize);
                let stream = &mut &self.stream;
                let pixels = self.decoder.rect(encoding, &self.format, size, stream);
                self.put(&area, &pixels);
            }
        }
        (encoding, area)
    }

    fn at(&self, x: u32, y: u32) -> usize {
        assert!(x < self.size.0 && y < self.size.1, "({x}, {y}) of {:?}", self.size);
        (y * self.size.0 + x) as usize
    }

    fn put(&mut self, area: &Rect, pixels: &[u32]) {
        for (y, line) in (area.y..).zip(pixels.chunks(area.width as usize)) {
            let at = self.at(area.x, y);
            self.at(area.right() - 1, y);
            self.pixels[at..at + line.len()].copy_from_slice(line);
        }
    }

    /// Takes updates until it shows `surface`, cut or padded with black to the viewer's
    /// size, and asks for more after each.
    pub fn follow(&mut self, surface: &Surface) -> Vec<(i32, Rect)> {
        let mut rects = Vec::new();
        while self.difference(surface).is_some() {
            rects.extend(self.update());
            self.ask();
        }
        rects
    }

    /// The first pixel that is not the surface's.
    pub fn difference(&self, surface: &Surface) -> Option<String> {
        (0..self.size.1).flat_map(|y| (0..self.size.0).map(move |x| (x, y))).find_map(|(x, y)| {
            let found = self.pixels[self.at(x, y)];
            let rgb = surface.pixel(x, y);
            let equal = match self.colours.get(found as usize) {
                Some(colour) if !self.format.true_colour => {
                    // 3, 3 and 2 bits.
                    let steps = [7, 7, 3].map(f64::from);
                    let near = |n: usize| {
                        let step = f64::from(colour[n]) / 65535.0 * steps[n];
                        (step - f64::from(rgb[n]) / 255.0 * steps[n]).abs() <= 0.5
                    };
                    (0..3).all(near)
                }
                _ => found == self.format.value(rgb),
            };
            (!equal).then(|| format!("({x}, {y}): {found:#x}, should be {rgb:?}"))
        })
    }

    /// Whether the server ends the connection, after any messages.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
