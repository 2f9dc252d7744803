//! Bitmaps side by side: ours, vm-memory's `AtomicBitmap`, and the classic word loop
//! (each word looked at, non-zero ones exchanged or OR-ed atomically), with a plain
//! read of the same bytes as the physical limit.
//!
//! `cargo bench -p integration-tests --bench peers [-- --rounds N] [-- --gib N,N,...]`
//!
//! Medians of at least 20 rounds; the last line is JSON.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use ram_block::vm_memory::bitmap::{AtomicBitmap, Bitmap};
use ram_block::{DirtyClient, DirtyMemory, PageSize};
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Sizes of the guests, in GiB
    #[arg(long, value_delimiter = ',', default_value = "64,1024,16384")]
    gib: Vec<u64>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const PAGE: u64 = 4096;
const CLIENT: DirtyClient = DirtyClient::MIGRATION;

fn pages_of(gib: u64) -> u64 {
    (gib << 30) / PAGE
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = black_box(work());
    times.push(begin.elapsed());
    result
}

#[derive(Clone, Copy)]
struct Density {
    name: &'static str,
    percent: f64,
    clustered: bool,
}

const DENSITIES: [Density; 8] = [
    Density { name: "clean", percent: 0.0, clustered: true },
    Density { name: "0.01 % clustered", percent: 0.01, clustered: true },
    Density { name: "0.01 % random", percent: 0.01, clustered: false },
    Density { name: "1 % clustered", percent: 1.0, clustered: true },
    Density { name: "1 % random", percent: 1.0, clustered: false },
    Density { name: "50 % clustered", percent: 50.0, clustered: true },
    Density { name: "50 % random", percent: 50.0, clustered: false },
    Density { name: "all", percent: 100.0, clustered: true },
];

/// A bitmap as KVM gives it; clusters are of 512 pages.
fn source(pages: u64, density: Density) -> Vec<u64> {
    let mut words = vec![0u64; usize::try_from(pages / 64).unwrap()];
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let share = density.percent / 100.0;
    if density.percent >= 100.0 {
        words.fill(u64::MAX);
    } else if density.clustered {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let limit = (share * u64::MAX as f64) as u64;
        for cluster in words.chunks_mut(8) {
            if random() < limit {
                cluster.fill(u64::MAX);
            }
        }
    } else if density.percent >= 50.0 {
        words.fill_with(random);
    } else {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let dirty = (share * pages as f64) as u64;
        for _ in 0..dirty {
            let page = random() % pages;
            words[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
        }
    }
    words
}

/// The loop that everybody writes.
struct Classic(Vec<Vec<AtomicU64>>);

impl Classic {
    fn new(words: usize) -> Self {
        Self((0..3).map(|_| (0..words).map(|_| AtomicU64::new(0)).collect()).collect())
    }

    fn merge(&self, source: &[u64]) {
        for (n, word) in source.iter().enumerate() {
            if *word != 0 {
                for client in &self.0 {
                    client[n].fetch_or(*word, Ordering::AcqRel);
                }
            }
        }
    }

    fn harvest(&self, into: &mut [u64]) -> u64 {
        let mut new = 0;
        for (word, slot) in self.0[2].iter().zip(into) {
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::AcqRel);
                new += u64::from((bits & !*slot).count_ones());
                *slot |= bits;
            }
        }
        new
    }
}

/// Counts the runs of a bitmap bit by bit of its dirty words, and takes nothing.
fn classic_runs(words: &[u64]) -> u64 {
    let mut runs = 0;
    let mut last = None;
    for (n, word) in (0u64..).zip(words) {
        let mut bits = *word;
        while bits != 0 {
            let page = n * 64 + u64::from(bits.trailing_zeros());
            runs += u64::from(last != Some(page));
            last = Some(page + 1);
            bits &= bits - 1;
        }
    }
    runs
}

fn row(name: &str, ours: f64, peer: f64, limit: Option<f64>) -> Value {
    let limit_text =
        limit.map_or(String::new(), |limit| format!("{:>12.1} {:>8.2}", limit, ours / limit));
    println!("{name:<38} {ours:>12.1} {peer:>12.1} {:>8.2} {limit_text}", peer / ours);
    json!({ "work": name, "ours_us": ours, "peer_us": peer, "limit_us": limit })
}

fn dirty_memory(pages: u64) -> Arc<DirtyMemory> {
    let dirty = DirtyMemory::new(pages, PageSize::new(PAGE).unwrap());
    DirtyClient::all().for_each(|client| dirty.enable(client));
    dirty
}

fn mark_a_gib(rounds: usize) -> Value {
    let pages = pages_of(1);
    let dirty = DirtyMemory::new(pages, PageSize::new(PAGE).unwrap());
    dirty.enable(CLIENT).unwrap();
    let len = usize::try_from(pages * PAGE).unwrap();
    let peer = AtomicBitmap::new(len, NonZeroUsize::new(4096).unwrap());
    let mut scratch = vec![0; usize::try_from(pages / 64).unwrap()];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(200) {
        timed(&mut ours, || dirty.mark(0, pages * PAGE));
        dirty.move_into(CLIENT, 0..pages, &mut scratch).unwrap();
        timed(&mut theirs, || peer.mark_dirty(0, len));
        peer.reset();
    }
    row("mark 1 GiB (peer: AtomicBitmap)", median(ours), median(theirs), None)
}

fn harvest_clean_64_gib(rounds: usize) -> Value {
    let pages = pages_of(64);
    let dirty = dirty_memory(pages);
    let len = usize::try_from(pages * PAGE).unwrap();
    let peer = AtomicBitmap::new(len, NonZeroUsize::new(4096).unwrap());
    let mut scratch = vec![0; usize::try_from(pages / 64).unwrap()];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        timed(&mut ours, || dirty.move_into(CLIENT, 0..pages, &mut scratch).unwrap());
        timed(&mut theirs, || peer.get_and_reset());
    }
    row("harvest clean 64 GiB (AtomicBitmap)", median(ours), median(theirs), None)
}

fn densities(gib: u64, rounds: usize) -> Vec<Value> {
    let pages = pages_of(gib);
    let words = usize::try_from(pages / 64).unwrap();
    let (dirty, classic) = (dirty_memory(pages), Classic::new(words));
    let mut private = vec![0u64; words];
    let mut scratch = vec![0u64; words];
    let mut rows = Vec::new();
    for density in DENSITIES {
        let source = source(pages, density);
        let [
            mut merge,
            mut harvest,
            mut runs,
            mut their_merge,
            mut their_harvest,
            mut their_runs,
            mut read,
        ] = [(); 7].map(|()| Vec::new());
        for round in 0..=rounds {
            timed(&mut read, || source.iter().fold(0u64, |all, word| all | word));
            timed(&mut merge, || dirty.merge(0, pages, &source).unwrap());
            private.fill(0);
            let ours =
                timed(&mut harvest, || dirty.move_into(CLIENT, 0..pages, &mut private).unwrap());
            // The others start clean too: a merge is measured, not one into what is set.
            for client in [DirtyClient::VGA, DirtyClient::CODE] {
                dirty.move_into(client, 0..pages, &mut scratch).unwrap();
            }
            dirty.merge(0, pages, &source).unwrap();
            let found = timed(&mut runs, || {
                let mut found = 0u64;
                let visit = |_| {
                    found += 1;
                    ControlFlow::<()>::Continue(())
                };
                let _ = dirty.visit_runs(CLIENT, 0..pages, 0, visit).unwrap();
                found
            });
            let expected = timed(&mut their_runs, || classic_runs(&source));
            assert_eq!(found, expected);
            for client in [DirtyClient::VGA, DirtyClient::CODE] {
                dirty.move_into(client, 0..pages, &mut scratch).unwrap();
            }
            timed(&mut their_merge, || classic.merge(&source));
            private.fill(0);
            let theirs = timed(&mut their_harvest, || classic.harvest(&mut private));
            classic.0[..2].iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
            assert_eq!(ours, theirs);
            if round == 0 {
                // Fresh memory is what the first round measures.
                for times in [
                    &mut merge,
                    &mut harvest,
                    &mut runs,
                    &mut their_merge,
                    &mut their_harvest,
                    &mut their_runs,
                    &mut read,
                ] {
                    times.clear();
                }
            }
        }
        let size = if gib < 1024 { format!("{gib} GiB") } else { format!("{} TiB", gib / 1024) };
        let limit = median(read);
        let name = density.name;
        rows.push(row(
            &format!("merge into 3, {size}, {name}"),
            median(merge),
            median(their_merge),
            Some(limit),
        ));
        rows.push(row(
            &format!("harvest, {size}, {name}"),
            median(harvest),
            median(their_harvest),
            Some(limit),
        ));
        rows.push(row(
            &format!("take runs, {size}, {name}"),
            median(runs),
            median(their_runs),
            Some(limit),
        ));
    }
    rows
}

fn main() {
    let options = Options::parse();
    println!(
        "{:<38} {:>12} {:>12} {:>8} {:>12} {:>8}",
        "us", "ours", "peer", "times", "plain read", "of it"
    );
    let mut rows = vec![mark_a_gib(options.rounds), harvest_clean_64_gib(options.rounds)];
    for gib in options.gib {
        rows.extend(densities(gib, options.rounds));
    }
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
}
