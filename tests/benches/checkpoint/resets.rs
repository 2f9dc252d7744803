//! The table of resets: each row is a way of tracking, a size and a number of pages, with a line
//! for each contestant.

use std::time::{Duration, Instant};

use integration_tests::bench::{Budget, FEWEST, Share, left_out};
use kvm_accel::RollBack;
use serde_json::{Value, json};

use crate::by_hand::{Raw, Undo};
use crate::case::{Contestant, Parts, check, median};
use crate::options::Options;
use crate::ours::Ours;
use machines::tracking::TrackingMode;

/// Cases of a turn: the first finds the caches as another machine left them, and does not count.
const CASES: usize = 5;

/// The lines of a row, and the line whose reset is the least that each could take.
const LINES: [(&str, usize); 6] = [
    ("ours, at once", 4),
    ("ours, with next run", 5),
    ("by hand", 4),
    ("pages dropped", 4),
    ("limit, at once", 4),
    ("limit, with next run", 5),
];
/// The line of the loop, whose runs refault nothing, and of the pages that are dropped.
const BY_HAND: usize = 2;
const DROPPED: usize = 3;

fn rows(options: &Options) -> impl Iterator<Item = (u64, TrackingMode, u64)> {
    // The largest come last: they are what is left out if the time is over.
    options.gib.iter().flat_map(move |gib| {
        let ways = options.ways.iter();
        ways.flat_map(move |way| options.pages.iter().map(move |pages| (*gib, *way, *pages)))
    })
}

/// Of one row: most of the time goes to many pages.
fn weight_of(pages: u64) -> f64 {
    if pages >= 1000 { 2.0 } else { 1.0 }
}

/// Of all rows.
pub fn weight(options: &Options) -> f64 {
    rows(options).map(|(_, _, pages)| weight_of(pages)).sum()
}

/// What a machine's cases took.
#[derive(Default)]
struct Measured {
    runs: Vec<Duration>,
    resets: Vec<Parts>,
}

impl Measured {
    fn of(&self, part: impl Fn(&Parts) -> Duration) -> f64 {
        median(self.resets.iter().map(part))
    }

    fn run(&self) -> f64 {
        median(self.runs.iter().copied())
    }
}

pub fn table(options: &Options, budget: &mut Budget) -> Vec<Value> {
    println!(
        "{:<33} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>9} {:>8}",
        "us", "reset", "get", "clear", "copy", "state", "/limit", "run", "resets/s", "/smaller"
    );
    let mut done: Vec<Row> = Vec::new();
    for (gib, way, pages) in rows(options) {
        let name = format!("{}, {gib} GiB, {pages} pages", way.name());
        let Some(share) = budget.row(weight_of(pages), Instant::now()) else {
            left_out(&name);
            continue;
        };
        let Some(measured) = measure(gib, way, pages, options, share) else {
            println!("{name}: not here");
            continue;
        };
        println!("{name}");
        let row = Row { gib, way, pages, measured };
        row.print(done.iter().find(|other| other.way == way && other.pages == pages));
        done.push(row);
    }
    done.iter().map(Row::json).collect()
}

/// Takes turns until the row's time is over.
fn measure(
    gib: u64,
    way: TrackingMode,
    pages: u64,
    options: &Options,
    share: Share,
) -> Option<[Measured; LINES.len()]> {
    let ours = |when| Ours::new(gib, way, pages, when, options);
    let (now, next) = (ours(RollBack::Now)?, ours(RollBack::WithNextRun)?);
    let msrs = now.msrs();
    let raw = |undo| Box::new(Raw::new(gib, way, pages, undo, &msrs));
    let mut machines: [Box<dyn Contestant>; LINES.len()] = [
        Box::new(now),
        Box::new(next),
        raw(Undo::Loop),
        raw(Undo::Drop),
        raw(Undo::Least(RollBack::Now)),
        raw(Undo::Least(RollBack::WithNextRun)),
    ];
    for machine in &mut machines {
        check(&mut **machine, pages);
    }
    let mut measured: [Measured; LINES.len()] = Default::default();
    let mut turns = 0;
    while turns < FEWEST || share.goes_on(turns, options.rounds, Instant::now()) {
        for (machine, measured) in machines.iter_mut().zip(&mut measured) {
            for case in 0..CASES {
                let start = Instant::now();
                machine.run();
                let run = start.elapsed();
                let parts = machine.reset();
                assert!(parts.pages >= pages, "{} of {pages} pages", parts.pages);
                if case > 0 {
                    measured.runs.push(run);
                    measured.resets.push(parts);
                }
            }
        }
        turns += 1;
    }
    for machine in &mut machines {
        check(&mut **machine, pages);
    }
    Some(measured)
}

/// A row that was measured.
struct Row {
    gib: u64,
    way: TrackingMode,
    pages: u64,
    measured: [Measured; LINES.len()],
}

impl Row {
    fn whole(&self, line: usize) -> f64 {
        self.measured[line].of(|parts| parts.whole)
    }

    /// What the runs of a line take longer because the pages are not there any more.
    fn refault(&self, line: usize) -> f64 {
        match line {
            DROPPED => (self.measured[DROPPED].run() - self.measured[BY_HAND].run()).max(0.0),
            _ => 0.0,
        }
    }

    /// How many times the least the reset of a line takes, with what it leaves to the next run.
    fn to_limit(&self, line: usize) -> f64 {
        (self.whole(line) + self.refault(line)) / self.whole(LINES[line].1).max(0.001)
    }

    fn rate(&self, line: usize) -> f64 {
        1e6 / (self.whole(line) + self.measured[line].run()).max(0.001)
    }

    fn print(&self, smaller: Option<&Self>) {
        for (line, (name, _)) in LINES.iter().enumerate() {
            let measured = &self.measured[line];
            let smaller = smaller.map(|other| self.whole(line) / other.whole(line).max(0.001));
            println!(
                "  {name:<31} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>7.2} {:>8.1} {:>9.0} \
                    {:>8}",
                self.whole(line),
                measured.of(|parts| parts.get),
                measured.of(|parts| parts.clear),
                measured.of(|parts| parts.copy),
                measured.of(|parts| parts.state),
                self.to_limit(line),
                measured.run(),
                self.rate(line),
                smaller.map_or_else(String::new, |times| format!("{times:.2}")),
            );
        }
        println!("  pages dropped: {:.1} us of its run are refaults", self.refault(DROPPED));
    }

    fn json(&self) -> Value {
        let lines = LINES.iter().enumerate().map(|(line, (name, _))| {
            let measured = &self.measured[line];
            json!({
                "name": name, "reset_us": self.whole(line), "get_us": measured.of(|p| p.get),
                "clear_us": measured.of(|p| p.clear), "copy_us": measured.of(|p| p.copy),
                "state_us": measured.of(|p| p.state), "run_us": measured.run(),
                "refault_us": self.refault(line), "to_limit": self.to_limit(line),
                "resets_per_second": self.rate(line), "cases": measured.runs.len(),
            })
        });
        json!({
            "tracking": self.way.name(), "gib": self.gib, "pages": self.pages,
            "lines": lines.collect::<Vec<_>>(),
        })
    }
}
