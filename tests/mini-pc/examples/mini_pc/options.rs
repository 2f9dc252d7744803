//! The command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use kvm_accel::DirtyTracking;
use machines::demo::AnyError;
use machines::link::Address;
use machines::size;
use mini_pc::firmware::{SEABIOS, STDVGA};
use mini_pc::{Boot, Config};

/// Runs a small PC on KVM.
#[derive(Parser)]
#[command(group = ArgGroup::new("boot").required(true).multiple(true)
    .args(["kernel", "bios", "boot_sector"]))]
pub struct Options {
    /// Start this kernel (a bzImage, memtest86+ for example) without firmware
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bios", "boot_sector"])]
    kernel: Option<PathBuf>,
    /// What the kernel is told
    #[arg(long, value_name = "TEXT", default_value = "", requires = "kernel")]
    append: String,
    /// Start this firmware
    #[arg(long, value_name = "FILE")]
    bios: Option<PathBuf>,
    /// The graphics card's ROM; SeaBIOS's, if there is one, unless said
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    vga_bios: Option<PathBuf>,
    /// Boot from a hard disk with this content, of one sector or more, which stays as it is;
    /// the firmware is SeaBIOS unless said
    #[arg(long, value_name = "FILE")]
    boot_sector: Option<PathBuf>,
    /// Bytes of RAM, a whole number of MiB (M and G are understood)
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_size)]
    ram: u64,
    /// How KVM tracks the pages that the guest writes
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Where the serial port goes
    #[arg(long, value_enum)]
    serial: Option<Serial>,
    /// Let VNC viewers look and type, at this address: 127.0.0.1:5900 for example
    #[arg(long, value_name = "ADDR")]
    pub vnc: Option<String>,
    /// Show the screen in a window, and type there; closing it ends the machine
    #[cfg(feature = "window")]
    #[arg(long)]
    pub window: bool,
    /// In the end, move the running machine to another process that listens there
    #[arg(long, value_name = "ADDR")]
    pub migrate_to: Option<Address>,
    /// Wait for a machine at HOST:PORT or unix:PATH, and go on with it; the other options are
    /// those that it was started with
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Address>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = parse_seconds)]
    pub seconds: Option<Duration>,
    /// End when this text is on the screen; if it is not in time (60 seconds unless said),
    /// the exit status is 2
    #[arg(long, value_name = "TEXT")]
    pub until: Option<String>,
    /// Take a checkpoint when this text is on the screen, and go back to it when that of --until is
    #[arg(long, value_name = "TEXT", requires = "until")]
    pub reset_at: Option<String>,
    /// Go back so many times
    #[arg(long, value_name = "N", default_value_t = 1, requires = "reset_at")]
    pub resets: u32,
    /// Write the screen to this file at the end
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Print the text on the screen at the end
    #[arg(long)]
    pub text: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Auto,
    Bitmap,
    Manual,
    Ring,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Serial {
    Stdio,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = size::multiple(text, 1 << 20)?;
    let least = Config::MIN_RAM;
    let few = || format!("{bytes} bytes are asked for, {least} are needed at least");
    if bytes < least { Err(few()) } else { Ok(bytes) }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, AnyError> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

impl Options {
    /// Whether the serial port is the terminal.
    pub fn serial_is_stdio(&self) -> bool {
        self.serial == Some(Serial::Stdio)
    }

    /// Whether the screen is shown in the terminal, if there is one.
    pub fn shows_in_terminal(&self) -> bool {
        #[cfg(feature = "window")]
        if self.window {
            return false;
        }
        !self.serial_is_stdio()
    }

    /// The machine that was asked for.
    pub fn config(&self) -> Result<Config, AnyError> {
        let boot = match &self.kernel {
            Some(kernel) => {
                Boot::Kernel { image: read(kernel)?, command_line: self.append.clone() }
            }
            None => Boot::Firmware {
                bios: read(self.bios.as_deref().unwrap_or(Path::new(SEABIOS)))?,
                vga_bios: match &self.vga_bios {
                    Some(path) => Some(read(path)?),
                    None => std::fs::read(STDVGA).ok(),
                },
            },
        };
        let tracking = match self.mode {
            Mode::Auto => DirtyTracking::Auto,
            Mode::Bitmap => DirtyTracking::Bitmap,
            Mode::Manual => DirtyTracking::ManualProtect,
            Mode::Ring => DirtyTracking::Ring { entries: 65_536 },
        };
        let disk = self.boot_sector.as_deref().map(read).transpose()?;
        let mut config = Config { ram: self.ram, disk, tracking, ..Config::new(boot) };
        if self.serial_is_stdio() {
            config.serial = Box::new(io::stdout());
        }
        Ok(config)
    }
}
