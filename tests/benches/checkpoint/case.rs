//! A case: which pages the guest dirties, and what it took to run it and to undo it.

use std::time::{Duration, Instant};

use machines::guest::DATA;
use ram_block::RamBlock;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// What the pages of a case are spread over, at every size of RAM.
const SPREAD: u64 = 256 << 20;
/// Where the guest finds how many pages it dirties, and the byte that it stores.
pub const ASKED: u64 = DATA;
/// Where the addresses begin.
pub const LIST: u64 = DATA + 0x1000;
/// Where the pages begin.
const FIRST: u64 = DATA + (1 << 20);
/// The port that ends a case.
pub const PORT: u16 = 0x510;

/// What it stores to each.
const STORED: u8 = 0xa5;

/// Where the pages are.
fn places(pages: u64) -> impl Iterator<Item = u64> {
    let stride = SPREAD / PAGE / pages;
    (0..pages).map(move |n| FIRST + n * stride * PAGE)
}

/// All pages that are not zero.
pub fn pages_in_use(pages: u64) -> impl Iterator<Item = u64> {
    (0..FIRST / PAGE).chain(places(pages).map(|place| place / PAGE))
}

/// Fills the pages that the guest dirties, each with something else, and lists them.
pub fn prepare(ram: &RamBlock, pages: u64) {
    for place in places(pages) {
        let words = (0..PAGE / 8).flat_map(|n| (place ^ (n << 48)).to_le_bytes());
        ram.write(place, &words.collect::<Vec<_>>()).unwrap();
    }
    let list: Vec<u8> = places(pages).flat_map(u64::to_le_bytes).collect();
    ram.write(LIST, &list).unwrap();
    ram.write(ASKED, &[pages, STORED.into()].map(u64::to_le_bytes).concat()).unwrap();
}

/// What a reset took, part by part.
#[derive(Clone, Copy, Default)]
pub struct Parts {
    /// All of it.
    pub whole: Duration,
    pub pages: u64,
    /// Reading the log.
    pub get: Duration,
    /// Re-arming it.
    pub clear: Duration,
    /// Putting the pages back.
    pub copy: Duration,
    /// Putting the vCPU back.
    pub state: Duration,
}

/// A machine whose cases are undone in some way.
pub trait Contestant {
    /// Runs a case.
    fn run(&mut self);

    /// Undoes it.
    fn reset(&mut self) -> Parts;

    /// The machine's RAM.
    fn ram(&self) -> &RamBlock;
}

/// The parts of a reset as they go by.
pub struct Laps(Instant);

impl Laps {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the last lap.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let time = now - self.0;
        self.0 = now;
        time
    }
}

/// The median, in microseconds.
pub fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Checks that a case changes memory, and a reset puts it back.
pub fn check(machine: &mut dyn Contestant, pages: u64) {
    let places = |machine: &dyn Contestant| {
        let byte = |place| {
            let mut byte = [0];
            machine.ram().read(place, &mut byte).unwrap();
            byte[0]
        };
        places(pages).map(byte).collect::<Vec<_>>()
    };
    machine.run();
    let dirtied = places(machine);
    machine.reset();
    assert!(dirtied.iter().all(|byte| *byte == STORED));
    assert!(places(machine).iter().all(|byte| *byte == 0));
}
