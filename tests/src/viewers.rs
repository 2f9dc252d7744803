//! VNC viewers that were not written for this project, as peers of tests.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::Need;
use machines::deadline::seconds;
use machines::demo::AnyError;

/// How long a viewer may take for anything.
pub fn patience() -> Duration {
    seconds(60)
}
const TIGERVNC: &str = "xtigervncviewer";
const SIDE: (u32, u32) = (1280, 1024);

fn missing(mut command: Command) -> Option<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("{program}: {status}")),
        Err(error) => Some(format!("{program} cannot be run: {error}")),
    }
}

fn need(name: &'static str, missing: Option<String>) -> Need {
    Need { name, required_by: "REQUIRE_VNC", missing }
}

/// The Python that has the viewers: of the environment at `VNC_VENV`, if that is set.
pub fn python() -> Command {
    let venv = std::env::var_os("VNC_VENV");
    let program = venv.map_or("python3".into(), |venv| PathBuf::from(venv).join("bin/python3"));
    let mut command = Command::new(program);
    // Both use a cipher that their library thinks little of, and rightly.
    command.args(["-W", "ignore"]);
    command
}

/// What tests with vncdotool and asyncvnc need (PyPI: these, and pillow).
pub fn need_python() -> Need {
    let mut command = python();
    command.args(["-c", "import vncdotool, asyncvnc, PIL"]);
    need("vncdotool and asyncvnc", missing(command))
}

/// What tests with gvnccapture need (Debian: `gvncviewer`).
pub fn need_gvnccapture() -> Need {
    let mut command = Command::new("gvnccapture");
    command.arg("--help");
    need("gvnccapture", missing(command))
}

/// What tests with TigerVNC need (Debian: `tigervnc-viewer`, `xvfb`).
pub fn need_tigervnc() -> Need {
    let found = |program: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
    };
    let lacking = [TIGERVNC, "Xvfb"].into_iter().find(|program| !found(program));
    need("TigerVNC", lacking.map(|program| format!("{program} is not installed")))
}

/// A folder that goes when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn new(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("vnc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Red, green and blue of each pixel of a PNG of 8 bits, and its width.
///
/// # Errors
///
/// If it cannot be read.
pub fn read_png(path: &Path) -> Result<(u32, Vec<[u8; 3]>), AnyError> {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().ok_or("the picture is too large")?];
    let info = reader.next_frame(&mut bytes)?;
    if info.bit_depth != png::BitDepth::Eight {
        return Err("the picture has not 8 bits a channel".into());
    }
    let samples = info.color_type.samples();
    if samples < 3 {
        return Err("the picture has no colours".into());
    }
    let pixels = bytes[..info.buffer_size()].chunks_exact(samples);
    Ok((info.width, pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()))
}

/// A process that ends when this is dropped.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// TigerVNC's viewer on a screen of its own.
#[derive(Debug)]
pub struct TigerVnc {
    // The viewer goes first.
    _viewer: Running,
    _screen: Running,
    folder: Folder,
}

impl TigerVnc {
    /// Connects to TCP port `port` of this machine. Its X server picks a display's number
    /// that is free.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(name: &str, port: u16, options: &[&str]) -> Result<Self, AnyError> {
        let folder = Folder::new(&format!("{name}-{port}"))?;
        let number = folder.path("display");
        let (width, height) = SIDE;
        // The shell hands over descriptor 3, on which the X server says its display.
        let script = format!(
            "exec Xvfb -displayfd 3 -nocursor -screen 0 {width}x{height}x24 -fbdir '{}' 3>'{}'",
            folder.path("").display(),
            number.display()
        );
        let screen = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let screen = Running(screen);
        let deadline = Instant::now() + patience();
        let display = loop {
            match std::fs::read_to_string(&number) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ if Instant::now() > deadline => return Err("there is no X server".into()),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let log = File::create(folder.path("log"))?;
        let viewer = Command::new(TIGERVNC)
            .env("DISPLAY", format!(":{display}"))
            .env("HOME", folder.path(""))
            .args(["-AlertOnFatalError=0", "-ReconnectOnError=0", "-AutoSelect=0"])
            .args(["-geometry=+0+0", "-Log=*:stderr:30"])
            .args(options)
            .arg(format!("127.0.0.1::{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { _viewer: Running(viewer), _screen: screen, folder })
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path("log")).unwrap_or_default()
    }

    /// All of its screen: width, and red, green and blue of each pixel.
    fn screenshot(&self) -> Option<(usize, Vec<[u8; 3]>)> {
        // An X window dump: numbers of 32 bits, most significant byte first.
        let dump = std::fs::read(self.folder.path("Xvfb_screen0")).ok()?;
        let number = |at: usize| {
            let bytes = dump.get(at * 4..at * 4 + 4)?.try_into().ok()?;
            usize::try_from(u32::from_be_bytes(bytes)).ok()
        };
        let (header, width, height) = (number(0)?, number(4)?, number(5)?);
        let (line, colours) = (number(12)?, number(19)?);
        let pixels = dump.get(header + colours * 12..)?;
        let lines = pixels.chunks_exact(line).take(height);
        let rgb = lines.flat_map(|line| line[..width * 4].chunks_exact(4));
        Some((width, rgb.map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect()))
    }

    /// Waits until a picture of `width` columns is on its screen, each colour as near as
    /// `near` says.
    ///
    /// # Errors
    ///
    /// If it is not within a minute; says what the viewer said, and in how many pixels the
    /// screen differs from the picture at its upper left.
    pub fn wait_shows(
        &self,
        width: u32,
        picture: &[[u8; 3]],
        near: impl Fn([u8; 3], [u8; 3]) -> bool,
    ) -> Result<(), AnyError> {
        let width = width as usize;
        let deadline = Instant::now() + patience();
        loop {
            if let Some((across, pixels)) = self.screenshot() {
                let line = |x: usize, y: usize| pixels.get(y * across + x..)?.get(..width);
                let equal = |shown: Option<&[[u8; 3]]>, line: &[[u8; 3]]| {
                    shown.is_some_and(|it| it.iter().zip(line).all(|(a, b)| near(*a, *b)))
                };
                let at = |x: usize, y: usize| {
                    picture.chunks(width).zip(y..).all(|(row, y)| equal(line(x, y), row))
                };
                // Where the window is, without a window manager.
                if (0..64).any(|y| (0..8).any(|x| at(x, y))) {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    let wrong = |x: usize, y: usize| -> usize {
                        let rows = picture.chunks(width).zip(y..);
                        rows.map(|(row, y)| {
                            let shown = line(x, y).unwrap_or_default();
                            shown.iter().zip(row).filter(|(a, b)| !near(**a, **b)).count()
                        })
                        .sum()
                    };
                    let least = (0..64).flat_map(|y| (0..8).map(move |x| (x, y)));
                    let least = least.map(|(x, y)| wrong(x, y)).min();
                    return Err(format!(
                        "{least:?} of {} pixels differ; {}",
                        picture.len(),
                        self.log()
                    )
                    .into());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
