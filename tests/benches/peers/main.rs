//! Bitmaps side by side: ours, the classic word loop (each word looked at, non-zero ones
//! exchanged or OR-ed atomically), `bitvec`, `roaring`, and for the two figures that it
//! can do vm-memory's `AtomicBitmap`; with a plain read of the same bytes as the physical
//! limit.
//!
//! `cargo bench -p integration-tests --bench peers [-- --all] [-- --rounds N] [-- --gib N,N,...]`
//!
//! Medians, all contestants in each round; the last line is JSON. Every row has its share of
//! three minutes. Whoever is too slow for 20 rounds in that has fewer, marked with a star;
//! where not even three fit, `bitvec` or `roaring` is left out ("-"). `--all` waits for all of
//! them, and adds guests of 16 TiB: more than half an hour.

mod contestants;
mod source;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::bench::{Budget, Extent, FEWEST, Share, left_out};
use ram_block::vm_memory::bitmap::{AtomicBitmap, Bitmap};
use ram_block::{DirtyClient, DirtyMemory, PageSize};
use serde_json::{Value, json};

use contestants::{Bits, Classic, Contestant, Ours, Roaring, Twin};
use source::{DENSITIES, PAGE, log_of, pages_of};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken, at most
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    #[command(flatten)]
    extent: Extent,
    /// Sizes of the guests, in GiB; 64 and 1024 unless said, with --all 16384, too
    #[arg(long, value_delimiter = ',')]
    gib: Vec<u64>,
    /// Leave out the slow contestants: bitvec and roaring
    #[arg(long)]
    quick: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

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

    /// Times [`MARKS`] marks, of 16 pages in turn.
    fn time_marks(&mut self, mark: impl Fn(u64)) {
        let begin = Instant::now();
        let mut at = 0;
        for _ in 0..MARKS {
            mark(black_box(at));
            at = (at + 4104) & 0xfff8;
        }
        self.0.push(begin.elapsed());
    }

    /// Times [`MARKS`] marks, each of another page.
    fn time_marks_of_pages(&mut self, mark: impl Fn(u64)) {
        let begin = Instant::now();
        for n in 0..MARKS {
            mark(black_box(n * 4099 % pages_of(1) * PAGE));
        }
        self.0.push(begin.elapsed());
    }

    /// In microseconds; not a number if nothing was timed.
    fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// So many that a row in microseconds is one in nanoseconds a mark.
const MARKS: u64 = 1000;

const WORKS: [&str; 3] = ["merge into 3", "harvest", "take runs"];

/// A contestant and its times.
struct Entry {
    name: &'static str,
    contestant: Box<dyn Contestant>,
    /// Of each of [`WORKS`].
    times: [Times; 3],
    /// Whether a row may do without it.
    is_optional: bool,
    /// Rounds that it has in this row, after the first.
    rounds: usize,
    /// How long its last round took, with what is not timed.
    spent: Duration,
}

impl Entry {
    fn new(name: &'static str, contestant: impl Contestant + 'static) -> Self {
        let is_optional = !matches!(name, "ours" | "classic");
        let contestant = Box::new(contestant);
        Self {
            name,
            contestant,
            times: Default::default(),
            is_optional,
            rounds: 0,
            spent: Duration::ZERO,
        }
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

/// What a first round took, by contestant and density, at the size before.
type Known = BTreeMap<(&'static str, &'static str), Duration>;

fn densities(
    gib: u64,
    options: &Options,
    budget: &mut Budget,
    mut known: (u64, Known),
) -> (Vec<Value>, Known) {
    let pages = pages_of(gib);
    let mut entries =
        vec![Entry::new("ours", Ours::new(pages)), Entry::new("classic", Classic::new(pages))];
    if !options.quick {
        entries.push(Entry::new("bitvec", Bits::new(pages)));
        entries.push(Entry::new("roaring", Roaring::default()));
    }
    let size = if gib < 1024 { format!("{gib} GiB") } else { format!("{} TiB", gib / 1024) };
    let mut rows = Vec::new();
    let mut costs = Known::new();
    for density in DENSITIES {
        let name = format!("{size}, {}", density.name);
        let Some(share) = budget.row(weight(gib), Instant::now()) else {
            left_out(&name);
            continue;
        };
        // Who took so long at another size that this one would take more than his share is not
        // even begun with.
        let (before, known) = (known.0.max(1), &mut known.1);
        for entry in &mut entries {
            let cost = known.get(&(entry.name, density.name));
            let scale = u32::try_from(gib / before).unwrap_or(u32::MAX);
            let rounds = cost.map_or(usize::MAX, |cost| {
                let cost = cost.saturating_mul(scale);
                share.rounds(0.5, cost, usize::MAX, Instant::now())
            });
            entry.rounds = if entry.is_optional && rounds <= FEWEST { 0 } else { options.rounds };
        }
        let log = log_of(pages, density);
        let mut read = Times::default();
        // The first round touches fresh memory, and says how long one takes.
        let found = round(&mut entries, &log, None);
        for entry in entries.iter_mut().filter(|entry| entry.rounds > 0) {
            costs.insert((entry.name, density.name), entry.spent);
        }
        plan(&mut entries, &share, options.rounds);
        for _ in 0..entries.iter().map(|entry| entry.rounds).max().unwrap_or(0) {
            read.time(|| log.iter().fold(0u64, |all, word| all | word));
            round(&mut entries, &log, found);
            entries.iter_mut().for_each(|entry| entry.rounds = entry.rounds.saturating_sub(1));
        }
        for (n, work) in WORKS.iter().enumerate() {
            rows.push(row(&format!("{work}, {name}"), &entries, n, read.median(), options.rounds));
        }
        for entry in &mut entries {
            entry.times = Default::default();
        }
    }
    (rows, costs)
}

/// How much of the time a row of a size has: work grows as the size does, what is not work less.
fn weight(gib: u64) -> f64 {
    f64::from(u32::try_from(gib / 64).unwrap_or(u32::MAX)).max(1.0).sqrt()
}

/// Who still has rounds does each work once; all find the same, as `found` says if it is known.
fn round(entries: &mut [Entry], log: &[u64], mut found: Option<(u64, u64)>) -> Option<(u64, u64)> {
    for entry in entries.iter_mut().filter(|entry| entry.rounds > 0) {
        let begin = Instant::now();
        let result = entry.round(log);
        entry.spent = begin.elapsed();
        assert_eq!(*found.get_or_insert(result), result, "{} differs", entry.name);
    }
    found
}

/// Decides by what the first round took how many there are, and forgets its times: half of the
/// share is for those whom every row has, the rest for the others.
fn plan(entries: &mut [Entry], share: &Share, wanted: usize) {
    let now = Instant::now();
    let cost = |entries: &[Entry], is_optional: bool| -> Duration {
        let those = entries.iter().filter(|entry| entry.is_optional == is_optional);
        those.filter(|entry| entry.rounds > 0).map(|entry| entry.spent).sum()
    };
    let needed = cost(entries, false);
    let rounds = share.rounds(0.5, needed, wanted, now).max(FEWEST.min(wanted));
    let left = share.left(now).map(|left| {
        left.saturating_sub(needed.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)))
    });
    let optional = entries.iter().filter(|entry| entry.is_optional && entry.rounds > 0).count();
    for entry in entries.iter_mut() {
        entry.times = Default::default();
        entry.rounds = match left {
            _ if entry.rounds == 0 => 0,
            _ if !entry.is_optional => rounds,
            None => wanted,
            Some(left) => {
                let part = left.as_nanos() / optional as u128 / entry.spent.as_nanos().max(1);
                let fitting = usize::try_from(part).unwrap_or(usize::MAX).min(wanted);
                if fitting < FEWEST.min(wanted) { 0 } else { fitting }
            }
        };
    }
}

/// Prints one work's figures: how long each took, and how many times ours that is.
fn row(name: &str, entries: &[Entry], work: usize, limit: f64, rounds: usize) -> Value {
    let ours = entries[0].times[work].median();
    let few = |entry: &Entry| if entry.rounds_done() < rounds { "*" } else { " " };
    print!("{name:<36} {ours:>11.1}{}{:>6.2}", few(&entries[0]), ours / limit);
    let mut peers = serde_json::Map::new();
    for entry in &entries[1..] {
        let median = entry.times[work].median();
        if median.is_nan() {
            print!("  {:>12} {:>8} ", "-", "-");
        } else {
            print!("  {median:>12.1} {:>8.1}{}", median / ours, few(entry));
        }
        peers.insert(entry.name.to_owned(), median.into());
    }
    println!();
    json!({ "work": name, "ours_us": ours, "read_us": limit, "peers_us": peers })
}

/// What vm-memory's own bitmap can do too, and a twin of it in which a mark and a harvest work on
/// 64 pages at a time.
fn against_vm_memory(rounds: usize) -> Vec<Value> {
    let print = |name: &str, times: &[Times; 3]| {
        let [ours, shipped, twin] = times.each_ref().map(Times::median);
        let (first, second) = (shipped / ours, twin / ours);
        print!("{name:<36} {ours:>11.2} {:>6}  {shipped:>12.2} {first:>8.1}", "");
        println!("   {twin:>12.2} {second:>8.1}");
        let peers = json!({ "AtomicBitmap": shipped, "twin": twin });
        json!({ "work": name, "ours_us": ours, "peers_us": peers })
    };
    let all = |gib: u64| {
        let dirty = DirtyMemory::new(pages_of(gib), PageSize::new(PAGE).unwrap());
        let len = usize::try_from(gib << 30).unwrap();
        (dirty, AtomicBitmap::new(len, NonZeroUsize::new(4096).unwrap()), Twin::new(pages_of(gib)))
    };
    let mut rows = Vec::new();

    for clients in [0, 1, 3] {
        let (dirty, shipped, twin) = all(1);
        let logs: Vec<_> = (0..clients).map(|_| dirty.claim("a log").unwrap()).collect();
        let mut times: [Times; 3] = Default::default();
        let [first, second, third] = &mut times;
        for _ in 0..rounds.max(200) {
            first.time_marks(|at| dirty.mark(at, 8));
            second.time_marks(|at| shipped.mark_dirty(usize::try_from(at).unwrap(), 8));
            third.time_marks(|at| twin.mark(at, 8));
        }
        rows.push(print(&format!("1,000 marks, dirty, {clients} clients"), &times));
        drop(logs);
    }

    let (dirty, shipped, twin) = all(1);
    let log = dirty.claim(CLIENT).unwrap();
    let mut times: [Times; 3] = Default::default();
    let [first, second, third] = &mut times;
    let mut private = vec![0; usize::try_from(pages_of(1) / 64).unwrap()];
    for _ in 0..rounds.max(200) {
        // Each page once, in an order that no prefetcher follows; all of them are clean before.
        first.time_marks_of_pages(|at| dirty.mark(at, 8));
        assert_eq!(log.move_into(0..pages_of(1), &mut private), Ok(MARKS));
        private.fill(0);
        second.time_marks_of_pages(|at| shipped.mark_dirty(usize::try_from(at).unwrap(), 8));
        shipped.reset();
        third.time_marks_of_pages(|at| twin.mark(at, 8));
        assert_eq!(twin.harvest(&mut private), MARKS);
        private.fill(0);
    }
    rows.push(print("1,000 marks, clean, 1 client", &times));

    let mut times: [Times; 3] = Default::default();
    let [first, second, third] = &mut times;
    for _ in 0..rounds.max(200) {
        first.time(|| dirty.mark(0, 1 << 30));
        assert_eq!(log.move_into(0..pages_of(1), &mut private), Ok(pages_of(1)));
        private.fill(0);
        second.time(|| shipped.mark_dirty(0, 1 << 30));
        shipped.reset();
        third.time(|| twin.mark(0, 1 << 30));
        assert_eq!(twin.harvest(&mut private), pages_of(1));
        private.fill(0);
    }
    rows.push(print("mark 1 GiB", &times));

    for marks in [0, 1, 1000] {
        let (dirty, shipped, twin) = all(64);
        let log = dirty.claim(CLIENT).unwrap();
        let mut times: [Times; 3] = Default::default();
        let [first, second, third] = &mut times;
        let mut private = vec![0; usize::try_from(pages_of(64) / 64).unwrap()];
        for _ in 0..rounds {
            for mark in 0..marks {
                let at = mark * 4099 % pages_of(64) * PAGE;
                dirty.mark(at, 8);
                shipped.mark_dirty(usize::try_from(at).unwrap(), 8);
                twin.mark(at, 8);
            }
            first.time(|| assert_eq!(log.move_into(0..pages_of(64), &mut private), Ok(marks)));
            private.fill(0);
            second.time(|| shipped.get_and_reset());
            third.time(|| assert_eq!(twin.harvest(&mut private), marks));
            private.fill(0);
        }
        rows.push(print(&format!("harvest 64 GiB, {marks} marked"), &times));
    }
    rows
}

fn main() {
    let options = Options::parse();
    println!(
        "{:<36} {:>11} {:>6}  {:>12} {:>8}   {:>12} {:>8}",
        "us", "ours", "", "AtomicBitmap", "times", "its twin", "times"
    );
    let mut rows = against_vm_memory(options.rounds);
    println!(
        "{:<36} {:>11} {:>6}  {:>12} {:>8}   {:>12} {:>8}   {:>12} {:>8}",
        "us", "ours", "/read", "classic", "times", "bitvec", "times", "roaring", "times"
    );
    let mut sizes = options.gib.clone();
    if sizes.is_empty() {
        sizes = if options.extent.all { vec![64, 1024, 16_384] } else { vec![64, 1024] };
    }
    let weight = DENSITIES.len() as f64 * sizes.iter().map(|gib| weight(*gib)).sum::<f64>();
    let mut budget = Budget::new(options.extent, weight, Instant::now());
    let mut known = (0, Known::new());
    for gib in sizes {
        let (of_size, costs) = densities(gib, &options, &mut budget, known);
        rows.extend(of_size);
        known = (gib, costs);
    }
    println!("{}", json!({ "rounds": options.rounds, "rows": rows }));
}
