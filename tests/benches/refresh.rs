//! What a refresh costs: nothing changed, one character, a sprite of 64x64 pixels and
//! full-screen video, at three sizes, next to a full redraw and to a plain copy of the
//! bytes that changed.
//!
//! `cargo bench -p integration-tests --bench refresh [-- --all] [-- --rounds N]`
//!
//! Medians, in microseconds, of fewer rounds where they do not fit three minutes, unless `--all`
//! is given; stores are made by the machine, so that there is no log to be
//! fetched from an accelerator. The last line is JSON.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use display_vga::{Screen, Vga};
use integration_tests::bench::{Budget, Extent, Share, left_out};
use memory_region::MemoryMap;
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken, at most
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    #[command(flatten)]
    extent: Extent,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

type AnyError = Box<dyn Error>;

const SIZES: [(u16, u16); 3] = [(640, 480), (1024, 768), (1920, 1080)];

/// What a guest draws between two refreshes.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    /// Width and height of the area, in pixels; all of the screen if larger.
    area: (u64, u64),
}

const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "idle", area: (0, 0) },
    Scenario { name: "character", area: (8, 16) },
    Scenario { name: "sprite", area: (64, 64) },
    Scenario { name: "video", area: (u64::MAX, u64::MAX) },
];

struct Display {
    vga: Arc<Vga>,
    screen: Screen,
    width: u64,
    height: u64,
}

impl Display {
    fn new(size: (u16, u16), shares: bool) -> Result<Self, AnyError> {
        let memory = MemoryMap::new();
        let vga = Vga::new("vga.vram", Vga::DEFAULT_VRAM)?;
        let regions = vga.add_to(&memory)?;
        vga.set_mode(size.0, size.1, 32)?;
        let screen = Screen::new(memory, vga.clone(), regions.vram)?;
        let mut screen = if shares { screen.zero_copy() } else { screen };
        screen.refresh()?;
        Ok(Self { vga, screen, width: size.0.into(), height: size.1.into() })
    }

    /// The byte offset and the length of each line of the area, in video memory.
    fn lines(&self, scenario: Scenario) -> impl Iterator<Item = (u64, usize)> + use<> {
        let (width, height) = (scenario.area.0.min(self.width), scenario.area.1.min(self.height));
        let (x, y) = ((self.width - width) / 2, (self.height - height) / 2);
        let line = self.width * 4;
        let bytes = usize::try_from(width * 4).unwrap_or(0);
        (y..y + height).map(move |y| (y * line + x * 4, bytes)).filter(|(_, bytes)| *bytes > 0)
    }

    fn draw(&self, scenario: Scenario, round: u64) -> Result<(), AnyError> {
        let noise: Vec<u8> =
            (0..self.width * 4).map(|n| (n.wrapping_mul(31) ^ round).to_le_bytes()[0]).collect();
        for (offset, bytes) in self.lines(scenario) {
            self.vga.vram().write(offset, &noise[..bytes])?;
        }
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    (times[times.len() / 2].as_secs_f64() * 1e7).round() / 10.0
}

fn timed(work: impl FnOnce() -> Result<(), AnyError>) -> Result<Duration, AnyError> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

/// The median time of `work`, done after `before`.
fn measure(
    rounds: usize,
    share: Share,
    mut before: impl FnMut(u64) -> Result<(), AnyError>,
    mut work: impl FnMut() -> Result<(), AnyError>,
) -> Result<f64, AnyError> {
    let mut times = Vec::new();
    while share.goes_on(times.len(), rounds, Instant::now()) {
        before(times.len() as u64)?;
        times.push(timed(&mut work)?);
    }
    Ok(median(times))
}

fn measure_size(
    options: &Options,
    size: (u16, u16),
    budget: &mut Budget,
    results: &mut Vec<Value>,
) -> Result<(), AnyError> {
    let rounds = options.rounds;
    println!("\n{}x{}, 32 bits", size.0, size.1);
    println!(
        "{:<12}{:>10}{:>10}{:>12}{:>12}{:>10}{:>12}",
        "", "copying", "sharing", "memcpy", "page copy", "read", "redraw"
    );
    let vga = Display::new(size, false)?.vga;
    let Some(share) = budget.row(1.0, Instant::now()) else {
        left_out("all of this size");
        return Ok(());
    };
    let redraw = measure(rounds.min(50), share, |_| Ok(()), || redraw(&vga))?;
    for scenario in SCENARIOS {
        let Some(share) = budget.row(1.0, Instant::now()) else {
            left_out(scenario.name);
            continue;
        };
        // Each kind in turn, so that all have the processor in the same states.
        let (mut own, mut shared) = (Display::new(size, false)?, Display::new(size, true)?);
        let plain = Display::new(size, false)?;
        let lines: Vec<_> = plain.lines(scenario).collect();
        let stride = usize::from(size.0) * 4;
        let mut picture = vec![0; stride * usize::from(size.1)];
        let from = lines.first().map_or(0, |(offset, _)| *offset);
        let (mut read, mut page_bytes) = (0, 0);
        let mut times = [const { Vec::new() }; 4];
        while share.goes_on(times[0].len(), rounds, Instant::now()) {
            let round = times[0].len() as u64;
            own.draw(scenario, round)?;
            times[0].push(timed(|| {
                let report = own.screen.refresh()?;
                read = report.bytes_copied;
                page_bytes = usize::try_from(report.pages * plain.vga.vram().page_size().bytes())?;
                Ok(())
            })?);
            shared.draw(scenario, round)?;
            times[1].push(timed(|| {
                black_box(shared.screen.refresh()?);
                Ok(())
            })?);
            // A copy of just the bytes that changed, and one of the pages that they are in.
            plain.draw(scenario, round)?;
            times[2].push(timed(|| {
                for (offset, bytes) in &lines {
                    let at = usize::try_from(*offset)?;
                    plain.vga.vram().read(*offset, &mut picture[at..at + bytes])?;
                }
                black_box(&mut picture);
                Ok(())
            })?);
            plain.draw(scenario, round)?;
            let page_bytes = page_bytes.min(picture.len());
            times[3].push(timed(|| {
                plain.vga.vram().read(from, &mut picture[..page_bytes])?;
                black_box(&mut picture);
                Ok(())
            })?);
        }
        let [copying, sharing, copy, page_copy] = times.map(median);
        let name = scenario.name;
        println!(
            "{name:<12}{copying:>10.1}{sharing:>10.1}{copy:>12.1}{page_copy:>12.1}{read:>10}\
            {redraw:>12.1}"
        );
        results.push(json!({
            "width": size.0, "height": size.1, "scenario": name,
            "copying_us": copying, "sharing_us": sharing, "memcpy_us": copy,
            "page_copy_us": page_copy, "bytes_read": read, "redraw_us": redraw,
        }));
    }
    Ok(())
}

fn redraw(vga: &Vga) -> Result<(), AnyError> {
    black_box(vga.screenshot()?);
    Ok(())
}

/// The text mode: idle, one character, and all.
fn measure_text(
    options: &Options,
    budget: &mut Budget,
    results: &mut Vec<Value>,
) -> Result<(), AnyError> {
    let memory = MemoryMap::new();
    let block = ram_block::RamBlock::anonymous("vga.vram", Vga::DEFAULT_VRAM)?;
    // Time stands still: nothing blinks.
    let vga = Vga::with_clock(block, || Duration::ZERO)?;
    let regions = vga.add_to(&memory)?;
    vga.set_text_mode()?;
    let mut screen = Screen::new(memory, vga.clone(), regions.vram)?;
    screen.refresh()?;
    println!("\n80x25 characters, 720x400");
    for (name, characters) in [("idle", 0), ("character", 1), ("all", 2000)] {
        let draw = |round: u64| {
            for n in 0..characters {
                let [code, ..] = (round + 33 + n).to_le_bytes();
                vga.vram().write(n * 4, &[code])?;
            }
            Ok(())
        };
        let Some(share) = budget.row(1.0, Instant::now()) else {
            left_out(name);
            continue;
        };
        let time = measure(options.rounds, share, draw, || {
            black_box(screen.refresh()?);
            Ok(())
        })?;
        println!("{name:<12}{time:>10.1}");
        results.push(json!({ "scenario": name, "text": true, "copying_us": time }));
    }
    match budget.row(1.0, Instant::now()) {
        Some(share) => {
            let redraw = measure(50, share, |_| Ok(()), || redraw(&vga))?;
            println!("{:<12}{redraw:>10.1}", "redraw");
        }
        None => left_out("redraw"),
    }
    Ok(())
}

fn main() -> Result<(), AnyError> {
    let options = Options::parse();
    let mut results = Vec::new();
    // A redraw and the scenarios of each size; three scenarios and a redraw of the text.
    let weight = (SIZES.len() * (SCENARIOS.len() + 1) + 4) as f64;
    let mut budget = Budget::new(options.extent, weight, Instant::now());
    println!("Microseconds a refresh; memcpy is of the bytes that changed, read are bytes.");
    for size in SIZES {
        measure_size(&options, size, &mut budget, &mut results)?;
    }
    measure_text(&options, &mut budget, &mut results)?;
    println!("{}", Value::from(results));
    Ok(())
}
