//! A QEMU whose devices are driven by hand: its processor stands still, accesses come
//! through its test protocol (qtest).

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::qemu::{Qemu, connect};

/// A PC of QEMU's that stands still.
#[derive(Debug)]
pub struct Qtest {
    qemu: RefCell<Qemu>,
    socket: RefCell<BufReader<UnixStream>>,
}

/// A picture: width, height, and red, green and blue of each pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Three bytes a pixel.
    pub rgb: Vec<u8>,
}

impl Qtest {
    /// Starts a machine with `arguments`.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(name: &str, arguments: &[&str]) -> io::Result<Self> {
        Self::start_with(name, arguments, &[])
    }

    /// As [`start`](Self::start), with files of these names and contents in its folder, which
    /// is `{dir}` in `arguments`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and if a file cannot be written.
    pub fn start_with(name: &str, arguments: &[&str], files: &[(&str, &[u8])]) -> io::Result<Self> {
        let mut all = vec!["-S", "-qtest", "unix:{dir}/qtest,server=on,wait=off"];
        all.extend(["-qtest-log", "/dev/null"]);
        all.extend(arguments);
        let qemu = Qemu::start_with(name, &all, files)?;
        let socket = BufReader::new(connect(&qemu.path("qtest"))?);
        Ok(Self { qemu: qemu.into(), socket: socket.into() })
    }

    /// Sends a command; returns what follows the OK.
    ///
    /// # Errors
    ///
    /// If QEMU refuses, or is gone.
    pub fn command(&self, command: &str) -> io::Result<String> {
        let mut socket = self.socket.borrow_mut();
        writeln!(socket.get_mut(), "{command}")?;
        let mut line = String::new();
        socket.read_line(&mut line)?;
        match line.trim_end().strip_prefix("OK") {
            Some(answer) => Ok(answer.trim().to_owned()),
            None => Err(io::Error::other(format!("{command}: {line}"))),
        }
    }

    /// Sends a command that reads a number.
    ///
    /// # Errors
    ///
    /// As [`command`](Self::command).
    pub fn read(&self, command: &str) -> io::Result<u64> {
        let answer = self.command(command)?;
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).map_err(io::Error::other)
    }

    /// Writes memory.
    ///
    /// # Errors
    ///
    /// As [`command`](Self::command).
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        for (n, bytes) in (0u64..).zip(bytes.chunks(16384)) {
            let mut command = format!("write {:#x} {:#x} 0x", address + n * 16384, bytes.len());
            for byte in bytes {
                write!(command, "{byte:02x}").map_err(io::Error::other)?;
            }
            self.command(&command)?;
        }
        Ok(())
    }

    /// Reads `len` bytes of memory.
    ///
    /// # Errors
    ///
    /// As [`command`](Self::command).
    pub fn read_memory(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let answer = self.command(&format!("read {address:#x} {len:#x}"))?;
        let digits = answer.trim_start_matches("0x").as_bytes();
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).map_err(io::Error::other)?;
            u8::from_str_radix(pair, 16).map_err(io::Error::other)
        };
        digits.chunks(2).map(byte).collect()
    }

    /// Lets its processor run (`cont`), or stops it again (`stop`).
    ///
    /// # Errors
    ///
    /// If QEMU refuses, or is gone.
    pub fn run_state(&self, command: &str) -> io::Result<()> {
        self.qemu.borrow_mut().execute(command, json!({})).map(drop)
    }

    /// What is on its screen.
    ///
    /// # Errors
    ///
    /// If QEMU refuses, or is gone.
    pub fn screendump(&self) -> io::Result<Picture> {
        let mut qemu = self.qemu.borrow_mut();
        let file = qemu.path("screen.ppm");
        qemu.execute("screendump", json!({ "filename": file }))?;
        parse_ppm(&std::fs::read(file)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// A binary portable pixmap of 8 bits, without comments.
fn parse_ppm(bytes: &[u8]) -> Option<Picture> {
    let mut fields = bytes.splitn(5, |byte| byte.is_ascii_whitespace());
    let mut number = |expected: Option<&[u8]>| {
        let field = fields.next()?;
        match expected {
            Some(expected) => (field == expected).then_some(0),
            None => std::str::from_utf8(field).ok()?.parse::<u32>().ok(),
        }
    };
    number(Some(b"P6"))?;
    let (width, height) = (number(None)?, number(None)?);
    number(Some(b"255"))?;
    let rgb = fields.next()?.to_vec();
    (rgb.len() as u64 == u64::from(width) * u64::from(height) * 3).then_some(Picture {
        width,
        height,
        rgb,
    })
}
