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

use clap::{Parser, Subcommand};

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
            eprintln!("error: {}", integration_tests::demo::explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The stream named `path`, to be read.
fn open(path: &str) -> Result<File, Error> {
    let file = match path {
        "-" => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        path => File::open(path),
    };
    file.map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// The stream named `path`, to be written.
fn create(path: &str) -> Result<File, Error> {
    let file = match path {
        "-" => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        path => File::create(path),
    };
    file.map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// A number of bytes: "64M", "0x1000", "4096".
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("a size is a number of bytes, with K, M, G or T behind it: {text}");
    let (number, shift) = match text.char_indices().last() {
        Some((end, 'K' | 'k')) => (&text[..end], 10),
        Some((end, 'M' | 'm')) => (&text[..end], 20),
        Some((end, 'G' | 'g')) => (&text[..end], 30),
        Some((end, 'T' | 't')) => (&text[..end], 40),
        _ => (text, 0),
    };
    let number = match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => number.parse(),
    };
    number.ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}
