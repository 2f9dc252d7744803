//! What can be asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kvm_accel::{DirtyTracking, KvmConfig};
use machines::demo::AnyError;
use machines::link::Address;
use machines::live::Shape;
use machines::size;

/// Moves a KVM guest from one process to another while it draws on a VGA and writes memory.
///
/// Without --listen and --to both processes are here: this one is the source, and starts the
/// destination. With them there are two machines; both are given the same --ram, --dirty and
/// --channels.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Be the destination, at HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", conflicts_with = "to")]
    pub listen: Option<Address>,
    /// Be the source, of a destination that listens there
    #[arg(long, value_name = "ADDR")]
    pub to: Option<Address>,
    /// Between the two processes here: TCP instead of a unix socket
    #[arg(long)]
    pub tcp: bool,
    /// Connections for pages besides the first, up to 16; 0: the first carries them
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=16))]
    pub channels: u16,
    /// How KVM tracks written pages
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
    /// How long the guest may stand still, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime: u64,
    /// At most so many bytes a second (K, M and G are understood)
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    pub bandwidth: Option<u64>,
    /// The guest's RAM in bytes, a multiple of 4096 (K, M and G are understood)
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::pages)]
    pub ram: u64,
    /// How much of it the guest writes over and over, a multiple of 4096
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size::pages)]
    pub dirty: u64,
    /// Bytes of pages that the guest writes in a second, at most
    #[arg(long, value_name = "BYTES", default_value = "128M", value_parser = size::bytes)]
    pub dirty_rate: u64,
    /// Slow the guest down if it writes faster than what it writes can be sent
    #[arg(long)]
    pub auto_converge: bool,
    /// Limit what the guest dirties if that is more than can be sent: with --mode ring only
    #[arg(long, conflicts_with = "auto_converge")]
    pub dirty_limit: bool,
    /// After so many rounds the guest is stopped whatever is left
    #[arg(long, default_value_t = 30)]
    pub max_rounds: u32,
    /// Compare the memory of both sides before the guest goes on: it stands still for longer
    #[arg(long)]
    pub verify: bool,
    /// Frames to draw before the migration begins, and after it
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub frames: u64,
    /// The destination writes the last frame to this file
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Print one JSON object, on the last line
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Auto,
    Bitmap,
    Manual,
    Ring,
}

impl Options {
    pub fn shape(&self) -> Shape {
        let tracking = match self.mode {
            Mode::Auto => DirtyTracking::Auto,
            Mode::Bitmap => DirtyTracking::Bitmap,
            Mode::Manual => DirtyTracking::ManualProtect,
            Mode::Ring => DirtyTracking::Ring { entries: 65_536 },
        };
        Shape {
            ram: self.ram,
            working_set: self.dirty,
            dirty_rate: self.dirty_rate,
            kvm: KvmConfig { tracking, ..KvmConfig::default() },
        }
    }

    pub fn allowed_downtime(&self) -> Duration {
        Duration::from_millis(self.downtime)
    }

    /// Where a destination that this process starts is to listen; `folder` is for its socket.
    ///
    /// The address is an argument of the destination, which says it again as a line: an error
    /// if it cannot be both.
    pub fn own_address(&self, folder: &Path) -> Result<Address, AnyError> {
        if self.tcp {
            return Ok(Address::Tcp("127.0.0.1:0".to_owned()));
        }
        let socket = folder.join(format!("live_migrate-{}", std::process::id()));
        let path = socket.to_str().ok_or_else(|| format!("{socket:?} is no text"))?;
        Ok(format!("unix:{path}").parse()?)
    }

    /// What the destination of this source is started with.
    pub fn for_child(&self, address: &Address) -> Vec<String> {
        let mut arguments = vec![
            format!("--listen={address}"),
            format!("--channels={}", self.channels),
            format!("--ram={}", self.ram),
            format!("--dirty={}", self.dirty),
            format!("--dirty-rate={}", self.dirty_rate),
            format!("--frames={}", self.frames),
            "--json".to_owned(),
        ];
        arguments.extend(self.png.as_ref().map(|path| format!("--png={}", path.display())));
        arguments.extend(self.verify.then(|| "--verify".to_owned()));
        arguments
    }
}
