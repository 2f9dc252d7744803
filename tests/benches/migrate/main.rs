//! Migrations between two processes side by side: ours, QEMU's, and as the physical limit a
//! bare copy of the same bytes through the same kind of sockets.
//!
//! `cargo bench -p integration-tests --bench migrate [-- --all] [-- --row WORDS] [-- --quick]`
//!
//! Medians, all contestants in each round; at most five rounds, and at least three. `--all` or a
//! row gives all memory and all ways; without, as three minutes have to do, memory that is sent
//! is half as large, which the row's name says, and sent by one Unix socket or two of TCP. Source
//! and destination are processes of their own. What the source sends is populated, and so is the
//! destination's memory, except for rows in which it stays untouched: else fresh memory would be
//! what is measured. The clock of the copy and of ours stops when the destination says that it
//! has everything, QEMU's is its own (`total-time`). The last line is JSON.

mod contestants;
mod memory;
mod side;
mod transport;

use std::error::Error;
use std::io;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use integration_tests::bench::{Budget, Extent, FEWEST, left_out};
use integration_tests::qemu;
use serde_json::{Value, json};

use contestants::{Ours, Peers};
use memory::{Contents, Memory};
use transport::Transport;

type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken, at most
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    extent: Extent,
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
/// Those that three minutes allow.
const FEW_WAYS: &[(Transport, usize)] = &[(Transport::Unix, 1), (Transport::Tcp, 2)];
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
    let weight = GROUPS.iter().map(|group| group.wanted(&options).count()).sum::<usize>()
        + wanted_downtimes(&options).count();
    let mut budget = Budget::new(options.extent, weight as f64, Instant::now());
    for group in &GROUPS {
        rows.extend(group.rows(&options, version.is_ok(), &mut budget)?);
    }
    rows.extend(downtimes(&options, &mut budget)?);
    println!("{}", json!({ "benchmark": "migrate", "rounds": options.rounds, "rows": rows }));
    Ok(())
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.row.split_whitespace().all(|word| row.split_whitespace().any(|other| other == word))
    }
}

impl Group {
    /// Bytes of the memory: half of it where three minutes have to do and all of it is sent.
    fn bytes(&self, options: &Options) -> u64 {
        let is_sent = self.contents != Contents::Untouched;
        let whole = self.gib << 30;
        match options.extent.all || !options.row.is_empty() || !is_sent {
            _ if options.quick => whole / 8,
            true => whole,
            false => whole / 2,
        }
    }

    /// What is sent, with its size.
    fn memory_name(&self, options: &Options) -> String {
        let bytes = self.bytes(options);
        match bytes >> 30 {
            0 => format!("{} {} MiB", self.contents, bytes >> 20),
            gib => format!("{} {gib} GiB", self.contents),
        }
    }

    fn name(&self, options: &Options, transport: Transport, channels: usize) -> String {
        format!("{}, {transport} {channels}", self.memory_name(options))
    }

    /// The ways that were asked for; unless said, without those between one by a Unix socket
    /// and two by TCP.
    fn wanted(&self, options: &Options) -> impl Iterator<Item = &'static (Transport, usize)> {
        let name = |way: &(Transport, usize)| self.name(options, way.0, way.1).replace(',', "");
        let is_usual = |way: &(Transport, usize)| FEW_WAYS.contains(way);
        let some = options.extent.all || !options.row.is_empty();
        let wanted = self.ways.iter().filter(move |way| options.wants(&name(way)));
        wanted.filter(move |way| some || is_usual(way))
    }

    fn rows(
        &self,
        options: &Options,
        qemu: bool,
        budget: &mut Budget,
    ) -> Result<Vec<Value>, AnyError> {
        let ways: Vec<_> = self.wanted(options).collect();
        if ways.is_empty() {
            return Ok(Vec::new());
        }
        if budget.is_over(Instant::now()) {
            left_out(&format!("all of {}", self.memory_name(options)));
            return Ok(Vec::new());
        }
        let memory = Memory::new(self.contents, self.bytes(options))?;
        let mut ours = Ours::start(&memory)?;
        let mut peers = if qemu { Some(Peers::start(&memory)?) } else { None };
        let mut rows = Vec::new();
        for &(transport, channels) in ways {
            let Some(share) = budget.row(1.0, Instant::now()) else {
                left_out(&self.name(options, transport, channels));
                continue;
            };
            // The first says how many bytes there are, and warms up.
            let (_, bytes) = ours.migrate(transport, channels)?;
            if let Some(peers) = &mut peers {
                peers.migrate(transport, channels)?;
            }
            let (mut copy, mut our, mut their) = (Vec::new(), Vec::new(), Vec::new());
            let mut rounds = 0;
            while share.goes_on(rounds, options.rounds, Instant::now()) {
                rounds += 1;
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
                self.name(options, transport, channels),
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
            for _ in 0..options.rounds.min(FEWEST) {
                reads.push(ours.read()?);
            }
            let read = median(&mut reads);
            println!("{:<32} {:>8} {:>9.1}", "  one read of this memory", memory.len >> 20, read);
            rows.push(json!({ "memory": "zeros", "bytes": memory.len, "read_ms": read }));
        }
        Ok(rows)
    }
}

/// The downtimes that were asked for.
fn wanted_downtimes(options: &Options) -> impl Iterator<Item = u64> {
    DOWNTIMES.into_iter().filter(|aim| options.wants(&format!("downtime {aim} ms")))
}

/// Downtimes of a machine that goes on writing, next to what was aimed at.
fn downtimes(options: &Options, budget: &mut Budget) -> Result<Vec<Value>, AnyError> {
    let wanted: Vec<_> = wanted_downtimes(options).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    if budget.is_over(Instant::now()) {
        left_out("downtimes");
        return Ok(Vec::new());
    }
    let memory = Memory::new(Contents::Random, if options.quick { 256 << 20 } else { 2 << 30 })?;
    let mut ours = Ours::start(&memory)?;
    let mut rows = Vec::new();
    for aim in wanted {
        let Some(share) = budget.row(1.0, Instant::now()) else {
            left_out(&format!("downtime {aim} ms"));
            continue;
        };
        let mut found = Vec::new();
        while share.goes_on(found.len(), options.rounds, Instant::now()) {
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
