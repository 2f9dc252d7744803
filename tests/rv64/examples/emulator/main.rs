//! An emulator on these crates: a RISC-V machine that draws, is taken back in time, saved, and
//! moved to another process while it runs; and what its memory costs.
//!
//! `cargo run --release --example emulator -- [--frames N] [--png FILE] [--rounds N]`

mod migrate;
mod picture;
mod speed;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use rv64::{Machine, Outcome, Rewind, Screen, demo};

type AnyError = Box<dyn Error + Send + Sync>;

/// Bytes of the machine's RAM.
const RAM: u64 = 64 << 20;
/// Frames between two checkpoints.
const CHECKPOINT: u64 = 10;
/// Checkpoints by which the machine goes back.
const BACK: usize = 3;

/// Runs an RV64IMAC machine that draws an animated picture.
#[derive(Parser)]
struct Options {
    /// Frames that the guest draws, at least 100
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(100..))]
    frames: u64,
    /// Writes the last picture to this file
    #[arg(long)]
    png: Option<PathBuf>,
    /// Rounds of which the speed is the median
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Receives the machine from standard input, as the process to which it moves
    #[arg(long, hide = true)]
    incoming: bool,
}

/// A machine with a screen, and what it has printed.
struct Shown {
    machine: Machine,
    screen: Screen,
    printed: String,
    /// Lines drawn so far.
    lines: u64,
    drawing: Duration,
}

impl Shown {
    fn new(machine: Machine) -> Result<Self, AnyError> {
        let screen = Screen::new(&machine)?;
        Ok(Self { machine, screen, printed: String::new(), lines: 0, drawing: Duration::ZERO })
    }

    /// Runs until `frames` frames are complete, or the guest has ended; refreshes the screen at
    /// each.
    fn run_until(&mut self, frames: u64) -> Result<(), AnyError> {
        while self.frames() < frames {
            let before = self.frames();
            let outcome = self.machine.run(1000);
            let output = self.machine.board().uart.take_output();
            self.printed.push_str(&String::from_utf8_lossy(&output));
            if self.frames() > before {
                let begin = Instant::now();
                self.lines += self.screen.refresh()?;
                self.drawing += begin.elapsed();
            }
            match outcome {
                Outcome::Steps => {}
                Outcome::Finished(0) => break,
                other => return Err(format!("the guest ends with {other:?}").into()),
            }
        }
        Ok(())
    }

    /// How many frames the guest has told of.
    fn frames(&self) -> u64 {
        self.printed.matches("frame ").count() as u64
    }
}

fn main() -> Result<(), AnyError> {
    let options = Options::parse();
    if options.incoming {
        return migrate::receive(&options);
    }
    println!("Memory behind a TLB, beside an array (millions of instructions a second)");
    speed::compare(options.rounds)?;

    let machine = Machine::new(RAM, 1)?;
    machine.load(0, &demo::guest(options.frames))?;
    let mut shown = Shown::new(machine)?;
    let begin = Instant::now();
    let half = options.frames / 2;
    shown.run_until(half)?;
    let (lines, drawing) = (shown.lines, shown.drawing);
    println!(
        "{half} frames in {:.1?}: {lines} lines drawn of {}, {drawing:.1?} for it",
        begin.elapsed(),
        half * rv64::layout::HEIGHT,
    );
    go_back(&mut shown)?;
    save(&shown.machine)?;
    migrate::send(shown.machine, &options)
}

/// Makes checkpoints, goes back to one, and runs the same frames again.
fn go_back(shown: &mut Shown) -> Result<(), AnyError> {
    let mut rewind = Rewind::new(&shown.machine, 2 * BACK)?;
    let first = shown.frames();
    for n in 1..=2 * BACK as u64 {
        shown.run_until(first + n * CHECKPOINT)?;
        rewind.checkpoint(&shown.machine)?;
    }
    let picture = shown.screen.pixels().to_vec();
    let begin = Instant::now();
    let went = rewind.rewind(&mut shown.machine, BACK)?;
    println!(
        "{went} checkpoints back in {:.1?}; {} pages are kept for {} of them",
        begin.elapsed(),
        rewind.pages_kept(),
        rewind.checkpoints(),
    );
    // What it prints again is not counted twice.
    let frames = shown.frames() - CHECKPOINT * BACK as u64;
    shown.printed = (0..frames).map(|frame| format!("frame {frame}\n")).collect();
    shown.run_until(first + 2 * BACK as u64 * CHECKPOINT)?;
    if shown.screen.pixels() != picture {
        return Err("what was run again is another picture".into());
    }
    Ok(())
}

/// Saves the machine, and restores another one from that.
fn save(machine: &Machine) -> Result<(), AnyError> {
    let begin = Instant::now();
    let state = machine.save()?;
    let saved = begin.elapsed();
    let begin = Instant::now();
    let mut other = Machine::new(RAM, 1)?;
    other.restore(&state)?;
    let restored = begin.elapsed();
    let (kib, mib) = (state.len() >> 10, RAM >> 20);
    println!("{mib} MiB saved in {saved:.1?} to {kib} KiB, restored in {restored:.1?}");
    if other.save()? != state {
        return Err("the restored machine is another one".into());
    }
    Ok(())
}
