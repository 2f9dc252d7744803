//! The table of an emulator that records each of its 60 frames a second: the part of a frame that
//! this takes, and what a step back takes.

use std::thread;
use std::time::{Duration, Instant};

use integration_tests::bench::{Budget, left_out};
use rv64::{Machine, Outcome, Rewind, demo};
use serde_json::{Value, json};

use crate::case::PAGE;
use crate::options::Options;

/// A frame of the host's time, and of the machine's.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);
const FRAME_TICKS: u64 = 10_000_000 / 60;
const RAM: u64 = 64 << 20;
/// Where pages are written beside the guest's.
const FURTHER: u64 = 16 << 20;
/// Frames that are kept: five seconds of them, which have passed before the first is measured.
const STEPS: usize = 300;
/// Of the three minutes, one row's; a row of a reset has 1.
const WEIGHT: f64 = 2.0;

pub fn weight(options: &Options) -> f64 {
    options.further.len() as f64 * WEIGHT
}

pub fn table(options: &Options, budget: &mut Budget) -> Vec<Value> {
    println!(
        "{:<34} {:>6} {:>7} {:>8} {:>7} {:>7} {:>7} {:>9} {:>8}",
        "us", "pages", "record", "99th", "%frame", "99th%", "frames", "step back", "99th"
    );
    let mut rows = Vec::new();
    for further in &options.further {
        let name = format!("60 Hz, {further} pages beside the picture");
        let now = Instant::now();
        let Some(share) = budget.row(WEIGHT, now) else {
            left_out(&name);
            continue;
        };
        let frames = share.rounds(0.9, FRAME, options.frames, now).max(100);
        let row = measure(*further, frames);
        row.print(&name, frames);
        rows.push(row.json(*further, frames));
    }
    rows
}

/// Times in ascending order, and pages that a frame has written.
struct Row {
    pages: f64,
    record: Vec<Duration>,
    back: Vec<Duration>,
}

fn measure(further: u64, frames: usize) -> Row {
    let mut machine = Machine::new(RAM, 2).unwrap();
    machine.load(0, &demo::guest(u64::MAX >> 1)).unwrap();
    let mut rewind = Rewind::new(&machine, STEPS).unwrap();
    let mut number = 0;
    let mut run = |machine: &mut Machine| {
        number += 1;
        assert_eq!(machine.run_for(FRAME_TICKS), Outcome::Steps);
        machine.board().uart.take_output();
        // No two pages are equal, and none is what it was.
        for page in 0..further {
            let bytes = [number, page].map(u64::to_le_bytes).concat();
            machine.ram().write(FURTHER + page * PAGE, &bytes).unwrap();
        }
    };
    for _ in 0..=STEPS {
        run(&mut machine);
        rewind.checkpoint(&machine).unwrap();
    }
    let (mut record, mut pages) = (Vec::new(), 0);
    let start = Instant::now();
    for frame in 1..=u32::try_from(frames).unwrap() {
        run(&mut machine);
        let begin = Instant::now();
        pages += rewind.checkpoint(&machine).unwrap();
        record.push(begin.elapsed());
        // As an emulator does, so that caches are as cold as they are there.
        thread::sleep((start + FRAME * frame).saturating_duration_since(Instant::now()));
    }
    let step = |_| {
        let begin = Instant::now();
        assert_eq!(rewind.rewind(&mut machine, 1).unwrap(), 1);
        begin.elapsed()
    };
    let mut back: Vec<Duration> = (1..STEPS).map(step).collect();
    record.sort_unstable();
    back.sort_unstable();
    Row { pages: pages as f64 / frames as f64, record, back }
}

/// The time that so many percent of the times do not exceed, in microseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

impl Row {
    fn print(&self, name: &str, frames: usize) {
        let [record, record_99] = [50, 99].map(|percent| percentile(&self.record, percent));
        let [back, back_99] = [50, 99].map(|percent| percentile(&self.back, percent));
        println!(
            "{name:<34} {:>6.0} {record:>7.1} {record_99:>8.1} {:>7.2} {:>7.2} {frames:>7} \
             {back:>9.1} {back_99:>8.1}",
            self.pages,
            percent_of_frame(record),
            percent_of_frame(record_99),
        );
    }

    fn json(&self, further: u64, frames: usize) -> Value {
        let [record, record_99] = [50, 99].map(|percent| percentile(&self.record, percent));
        let [back, back_99] = [50, 99].map(|percent| percentile(&self.back, percent));
        json!({
            "further_pages": further, "frames": frames, "pages": self.pages,
            "record_us": record, "record_99_us": record_99,
            "percent_of_frame": percent_of_frame(record),
            "percent_of_frame_99": percent_of_frame(record_99),
            "back_us": back, "back_99_us": back_99,
        })
    }
}

fn percent_of_frame(us: f64) -> f64 {
    us / (FRAME.as_secs_f64() * 1e6) * 100.0
}
