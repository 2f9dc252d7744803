//! Bitmaps side by side: ours, the classic word loop (each word looked at, non-zero ones
//! exchanged or OR-ed atomically), `bitvec`, `roaring`, and for the two figures that it
//! can do vm-memory's `AtomicBitmap`; with a plain read of the same bytes as the physical
//! limit.
//!
//! `cargo bench -p integration-tests --bench peers [-- --rounds N] [-- --gib N,N,...]`
//!
//! Medians of at least 20 rounds, all contestants in each round; the last line is JSON.
//! `bitvec` and `roaring` are asked three times only where they take a hundred times as
//! long, or seconds; such figures are marked with a star.

mod contestants;
mod source;

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use clap::Parser;
use ram_block::vm_memory::bitmap::{AtomicBitmap, Bitmap};
use ram_block::{DirtyClient, DirtyMemory, PageSize};
use serde_json::{Value, json};

use contestants::{Bits, Classic, Contestant, Ours, Roaring};
use source::{DENSITIES, PAGE, log_of, pages_of};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "64,1024,16384")]
    gib: Vec<u64>,
    /// Leave out the slow contestants: bitvec and roaring
    #[arg(long)]
    quick: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

/// Rounds of a contestant that takes too long for all of them.
const FEW: usize = 3;

/// Times of one kind of work.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = black_box(work());
        self.0.push(begin.elapsed());
        result
    }

    /// In microseconds.
    fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    }
}

const WORKS: [&str; 3] = ["merge into 3", "harvest", "take runs"];

/// A contestant and its times.
struct Entry {
    name: &'static str,
    contestant: Box<dyn Contestant>,
    /// Of each of [`WORKS`].
    times: [Times; 3],
}

impl Entry {
    fn new(name: &'static str, contestant: impl Contestant + 'static) -> Self {
        Self { name, contestant: Box::new(contestant), times: Default::default() }
    }

    /// Does each work once; returns how many pages and runs it found.
    fn round(&mut self, log: &[u64]) -> (u64, u64) {
        let Self { contestant, times: [merge, harvest, runs], .. } = self;
        merge.time(|| contestant.merge(log));
        let pages = harvest.time(|| contestant.harvest());
        contestant.clean();
        contestant.merge(log);
        let found = runs.time(|| contestant.runs());
        contestant.clean();
        (pages, found)
    }

    fn rounds_done(&self) -> usize {
        self.times[0].0.len()
    }
}

fn densities(gib: u64, options: &Options) -> Vec<Value> {
    let pages = pages_of(gib);
    let mut entries =
        vec![Entry::new("ours", Ours::new(pages)), Entry::new("classic", Classic::new(pages))];
    if !options.quick {
        entries.push(Entry::new("bitvec", Bits::new(pages)));
        entries.push(Entry::new("roaring", Roaring::default()));
    }
    let size = if gib < 1024 { format!("{gib} GiB") } else { format!("{} TiB", gib / 1024) };
    let mut rows = Vec::new();
    for density in DENSITIES {
        let log = log_of(pages, density);
        let mut read = Times::default();
        // The first round touches fresh memory, and says who is slow.
        let mut slow = [false; 4];
        for round in 0..=options.rounds {
            read.time(|| log.iter().fold(0u64, |all, word| all | word));
            let mut found = None;
            let mut ours = Duration::ZERO;
            for (entry, slow) in entries.iter_mut().zip(&mut slow) {
                if *slow && entry.rounds_done() >= FEW {
                    continue;
                }
                let begin = Instant::now();
                let result = entry.round(&log);
                assert_eq!(*found.get_or_insert(result), result, "{} differs", entry.name);
                if round == 0 {
                    let all: Duration = entry.times.iter().map(|times| times.0[0]).sum();
                    if entry.name == "ours" {
                        ours = all;
                    }
                    let limited = !matches!(entry.name, "ours" | "classic");
                    *slow =
                        limited && (all > 100 * ours || begin.elapsed() > Duration::from_secs(5));
                    entry.times = Default::default();
                }
            }
            if round == 0 {
                read = Times::default();
            }
        }
        for (n, work) in WORKS.iter().enumerate() {
            let name = format!("{work}, {size}, {}", density.name);
            rows.push(row(&name, &entries, n, read.median(), options.rounds));
        }
        for entry in &mut entries {
            entry.times = Default::default();
        }
    }
    rows
}

/// Prints one work's figures: how long each took, and how many times ours that is.
fn row(name: &str, entries: &[Entry], work: usize, limit: f64, rounds: usize) -> Value {
    let ours = entries[0].times[work].median();
    print!("{name:<36} {ours:>11.1} {:>6.2}", ours / limit);
    let mut peers = serde_json::Map::new();
    for entry in &entries[1..] {
        let median = entry.times[work].median();
        let few = if entry.rounds_done() < rounds { "*" } else { " " };
        print!("  {median:>12.1} {:>8.1}{few}", median / ours);
        peers.insert(entry.name.to_owned(), median.into());
    }
    println!();
    json!({ "work": name, "ours_us": ours, "read_us": limit, "peers_us": peers })
}

/// What vm-memory's own bitmap can do too.
fn against_vm_memory(rounds: usize) -> Vec<Value> {
    let print = |name: &str, ours: &Times, theirs: &Times| {
        let (ours, theirs) = (ours.median(), theirs.median());
        println!("{name:<36} {ours:>11.1} {:>6}  {theirs:>12.1} {:>8.1}", "", theirs / ours);
        json!({ "work": name, "ours_us": ours, "peers_us": { "AtomicBitmap": theirs } })
    };
    let both = |gib: u64| {
        let dirty = DirtyMemory::new(pages_of(gib), PageSize::new(PAGE).unwrap());
        dirty.enable(CLIENT).unwrap();
        let len = usize::try_from(gib << 30).unwrap();
        (dirty, AtomicBitmap::new(len, NonZeroUsize::new(4096).unwrap()), len)
    };

    let (dirty, peer, len) = both(1);
    let (mut ours, mut theirs) = <(Times, Times)>::default();
    let mut private = vec![0; usize::try_from(pages_of(1) / 64).unwrap()];
    for _ in 0..rounds.max(200) {
        ours.time(|| dirty.mark(0, 1 << 30));
        assert_eq!(dirty.move_into(CLIENT, 0..pages_of(1), &mut private), Ok(pages_of(1)));
        private.fill(0);
        theirs.time(|| peer.mark_dirty(0, len));
        peer.reset();
    }
    let mark = print("mark 1 GiB", &ours, &theirs);

    let (dirty, peer, _) = both(64);
    let (mut ours, mut theirs) = <(Times, Times)>::default();
    let mut private = vec![0; usize::try_from(pages_of(64) / 64).unwrap()];
    for _ in 0..rounds {
        ours.time(|| dirty.move_into(CLIENT, 0..pages_of(64), &mut private).unwrap());
        theirs.time(|| peer.get_and_reset());
    }
    vec![mark, print("harvest clean 64 GiB", &ours, &theirs)]
}

fn main() {
    let options = Options::parse();
    println!("{:<36} {:>11} {:>6}  {:>12} {:>8}", "us", "ours", "", "AtomicBitmap", "times");
    let mut rows = against_vm_memory(options.rounds);
    println!(
        "{:<36} {:>11} {:>6}  {:>12} {:>8}   {:>12} {:>8}   {:>12} {:>8}",
        "us", "ours", "/read", "classic", "times", "bitvec", "times", "roaring", "times"
    );
    for gib in &options.gib {
        rows.extend(densities(*gib, &options));
    }
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
}
