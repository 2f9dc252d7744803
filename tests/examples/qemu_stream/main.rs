//! A machine's RAM as a stream that QEMU reads, RAM out of a stream that QEMU wrote, or what
//! is in such a stream.
//!
//! ```text
//! cargo run --release --example qemu_stream -- export --size 64M ram.stream
//! qemu-system-x86_64 -machine none -m 64 -incoming "exec:cat ram.stream"
//!
//! (qemu) migrate "exec:cat > pc.stream"
//! cargo run --release --example qemu_stream -- show pc.stream
//! cargo run --release --example qemu_stream -- import pc.stream --out blocks
//! ```
//!
//! A stream may be a file, or "-" for standard input or output.

mod describe;
mod error;
mod export;
mod fill;
mod import;
mod show;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use migration_ram::ReadTransport;

use error::Error;

/// Writes, reads and shows migration streams as QEMU has them.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a machine's RAM as a stream
    Export(export::Export),
    /// Reads RAM from a stream, into a file for each block
    Import(import::Import),
    /// Prints a stream's blocks and sections
    Show(show::Show),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match Options::parse().command {
        Command::Export(export) => export.run(),
        Command::Import(import) => import.run(),
        Command::Show(show) => show.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", machines::demo::explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The stream named `path`, to be read, as soon as it begins: whoever starts a migration into a
/// pipe may take his time, and has deadlines only then.
fn open(path: &str) -> Result<File, Error> {
    let file = match path {
        "-" => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        path => File::open(path),
    };
    let begun = file.and_then(|mut file| file.wait(Duration::MAX).map(|_| file));
    begun.map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// The stream named `path`, to be written.
fn create(path: &str) -> Result<File, Error> {
    let file = match path {
        "-" => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        path => File::create(path),
    };
    file.map_err(|source| Error::Open { path: path.to_owned(), source })
}
