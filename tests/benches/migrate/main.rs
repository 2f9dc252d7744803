//! Migrations between two processes side by side: ours, QEMU's, and as the physical limit a
//! bare copy of the same bytes through the same kind of sockets.
//!
//! `cargo bench -p integration-tests --bench migrate [-- --row WORDS] [-- --quick]`
//!
//! Medians, all contestants in each round. Source and destination are processes of their
//! own. What the source sends is populated, and so is the destination's memory, except for
//! rows in which it stays untouched: else fresh memory would be what is measured. The clock of
//! the copy and of ours stops when the destination says that it has everything, QEMU's is
//! its own (`total-time`). The last line is JSON.

mod contestants;
mod memory;
mod side;
mod transport;

use std::error::Error;
use std::io;

use clap::{Parser, ValueEnum};
use integration_tests::qemu;
use serde_json::{Value, json};

use contestants::{Ours, Peers};
use memory::{Contents, Memory};
use transport::Transport;

type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only rows whose name has all of these words, as "random unix 2"
    #[arg(long, default_value = "")]
    row: String,
    /// Three rounds, and an eighth of the memory
    #[arg(long)]
    quick: bool,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// After the first migration only copy, or only migrate: for a profiler
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// What a process that was started by the benchmark is: its words
    #[arg(long, hide = true, num_args = 1..)]
    side: Vec<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Only {
    Copy,
    Ours,
}

/// A machine's memory, and the ways it is sent.
struct Group {
    contents: Contents,
    gib: u64,
    ways: &'static [(Transport, usize)],
}

const ALL_WAYS: &[(Transport, usize)] =
    &[(Transport::Unix, 1), (Transport::Unix, 2), (Transport::Tcp, 1), (Transport::Tcp, 2)];
const ONE_WAY: &[(Transport, usize)] = &[(Transport::Unix, 1)];

const GROUPS: [Group; 5] = [
    Group { contents: Contents::Random, gib: 2, ways: ALL_WAYS },
    Group { contents: Contents::HalfZero, gib: 2, ways: ALL_WAYS },
    Group { contents: Contents::Untouched, gib: 8, ways: ALL_WAYS },
    Group { contents: Contents::Untouched, gib: 32, ways: ONE_WAY },
    Group { contents: Contents::Zeros, gib: 4, ways: ONE_WAY },
];

/// Downtimes that are aimed at, in milliseconds.
const DOWNTIMES: [u64; 3] = [50, 100, 300];
/// Bytes a second that the machine writes meanwhile.
const WRITTEN: u64 = 200 << 20;

fn main() -> Result<(), AnyError> {
    let mut options = Options::parse();
    if let [side, memory @ ..] = options.side.as_slice() {
        return side::run(side, &Memory::parse(memory)?);
    }
    if options.quick {
        options.rounds = 3;
    }
    let version = if options.no_qemu || options.only.is_some() {
        Err("left out".to_owned())
    } else {
        qemu::version()
    };
    match &version {
        Ok(version) => println!("{version}"),
        Err(reason) => println!("without QEMU: {reason}"),
    }
    println!(
        "{:<32} {:>8} {:>9} {:>9} {:>9} {:>11} {:>10}",
        "row", "sent MiB", "copy ms", "ours ms", "QEMU ms", "copy / ours", "QEMU / ours"
    );
    let mut rows = Vec::new();
    for group in &GROUPS {
        rows.extend(group.rows(&options, version.is_ok())?);
    }
    rows.extend(downtimes(&options)?);
    println!("{}", json!({ "benchmark": "migrate", "rounds": options.rounds, "rows": rows }));
    Ok(())
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.row.split_whitespace().all(|word| row.split_whitespace().any(|other| other == word))
    }
}

impl Group {
    fn name(&self, transport: Transport, channels: usize) -> String {
        format!("{} {} GiB, {transport} {channels}", self.contents, self.gib)
    }

    fn rows(&self, options: &Options, qemu: bool) -> Result<Vec<Value>, AnyError> {
        let name = |way: &(Transport, usize)| self.name(way.0, way.1).replace(',', "");
        let ways: Vec<_> = self.ways.iter().filter(|way| options.wants(&name(way))).collect();
        if ways.is_empty() {
            return Ok(Vec::new());
        }
        let memory =
            Memory::new(self.contents, (self.gib << 30) / if options.quick { 8 } else { 1 })?;
        let mut ours = Ours::start(&memory)?;
        let mut peers = if qemu { Some(Peers::start(&memory)?) } else { None };
        let mut rows = Vec::new();
        for &(transport, channels) in ways {
            // The first says how many bytes there are, and warms up.
            let (_, bytes) = ours.migrate(transport, channels)?;
            if let Some(peers) = &mut peers {
                peers.migrate(transport, channels)?;
            }
            let (mut copy, mut our, mut their) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                if options.only != Some(Only::Ours) {
                    copy.push(ours.copy(transport, channels, bytes)?);
                }
                if options.only != Some(Only::Copy) {
                    our.push(ours.migrate(transport, channels)?.0);
                }
                if let Some(peers) = &mut peers {
                    their.push(peers.migrate(transport, channels)?);
                }
            }
            let (copy, our, their) = (median(&mut copy), median(&mut our), median(&mut their));
            println!(
                "{:<32} {:>8} {:>9.1} {:>9.1} {:>9.1} {:>11.2} {:>10.2}",
                self.name(transport, channels),
                bytes >> 20,
                copy,
                our,
                their,
                copy / our,
                their / our
            );
            rows.push(json!({
                "memory": self.contents.to_string(), "bytes": memory.len,
                "transport": transport.to_string(), "channels": channels, "sent": bytes,
                "copy_ms": known(copy), "ours_ms": known(our), "qemu_ms": known(their),
            }));
        }
        if self.contents == Contents::Zeros {
            let mut reads = Vec::new();
            for _ in 0..options.rounds {
                reads.push(ours.read()?);
            }
            let read = median(&mut reads);
            println!("{:<32} {:>8} {:>9.1}", "  one read of this memory", memory.len >> 20, read);
            rows.push(json!({ "memory": "zeros", "bytes": memory.len, "read_ms": read }));
        }
        Ok(rows)
    }
}

/// Downtimes of a machine that goes on writing, next to what was aimed at.
fn downtimes(options: &Options) -> Result<Vec<Value>, AnyError> {
    let wanted: Vec<_> =
        DOWNTIMES.into_iter().filter(|aim| options.wants(&format!("downtime {aim} ms"))).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let memory = Memory::new(Contents::Random, if options.quick { 256 << 20 } else { 2 << 30 })?;
    let mut ours = Ours::start(&memory)?;
    let mut rows = Vec::new();
    for aim in wanted {
        let mut found = Vec::new();
        for _ in 0..options.rounds {
            found.push(ours.downtime(aim, WRITTEN)?);
        }
        let worst = found.iter().copied().fold(0.0, f64::max);
        let median = median(&mut found);
        println!(
            "downtime {aim} ms, {} MiB/s written: {median:.1} ms, at most {worst:.1}",
            WRITTEN >> 20
        );
        rows.push(json!({
            "downtime_aim_ms": aim, "downtime_ms": median, "downtime_most_ms": worst,
            "written_per_second": WRITTEN,
        }));
    }
    Ok(rows)
}

fn known(time: f64) -> Option<f64> {
    (!time.is_nan()).then_some(time)
}

/// `NaN` of nothing.
fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn failed(what: impl Into<String>) -> AnyError {
    io::Error::other(what.into()).into()
}
