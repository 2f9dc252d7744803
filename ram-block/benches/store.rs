//! The cost of a store of the monitor, by the clients that log it.
//!
//! `cargo bench -p ram-block --bench store`
//!
//! Nanoseconds of a store of eight bytes through vm-memory, each to the next of 16 pages;
//! the best of 5,000 short rounds, which take turns, so that what else the machine does meets
//! all rows alike. Done in a few seconds.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use ram_block::vm_memory::{Bytes, VolatileSlice};
use ram_block::{CodeWatch, DirtyClient, RamBlock};

const PAGES: u64 = 16;
const STORES: u32 = 1 << 12;
const ROUNDS: usize = 5_000;

/// A block, and the watch over it.
struct Row {
    name: &'static str,
    ram: Arc<RamBlock>,
    _watch: Option<CodeWatch>,
    best: f64,
}

impl Row {
    fn new(name: &'static str, watch: bool) -> Result<Self, Box<dyn Error>> {
        let ram = RamBlock::anonymous("ram", 2 * PAGES * 4096)?;
        ram.populate(0..ram.len())?;
        let _watch = if watch { Some(ram.dirty().watch_code(|_| ())?) } else { None };
        Ok(Self { name, ram, _watch, best: f64::MAX })
    }

    fn watch(self, pages: std::ops::Range<u64>) -> Result<Self, Box<dyn Error>> {
        if let Some(watch) = &self._watch {
            watch.watch(pages)?;
        }
        Ok(self)
    }
}

/// A store to the next page, as often as is counted.
#[inline(never)]
fn stores<B: ram_block::vm_memory::bitmap::BitmapSlice>(memory: &VolatileSlice<'_, B>) -> f64 {
    let start = Instant::now();
    let mut at = 0;
    for n in 0..STORES {
        let _ = memory.write_obj(u64::from(n), black_box(at));
        at = (at + 4104) & 0xfff8;
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(STORES)
}

fn main() -> Result<(), Box<dyn Error>> {
    let vga = Row::new("VGA is on, all pages dirty", false)?;
    let _log = vga.ram.dirty().claim(DirtyClient::VGA)?;
    vga.ram.dirty().mark(0, vga.ram.len());
    let three = Row::new("three clients are on, all pages dirty", false)?;
    let claim = |name: &str| three.ram.dirty().claim(name);
    let _logs = [claim("first")?, claim("second")?, claim("third")?];
    three.ram.dirty().mark(0, three.ram.len());
    let mut rows = [
        Row::new("nobody", false)?,
        Row::new("a code watch that watches nothing", true)?,
        Row::new("a code watch that has watched and watches nothing", true)?.watch(5..6)?,
        Row::new("a code watch of other pages", true)?.watch(PAGES + 5..PAGES + 6)?,
        vga,
        three,
    ];
    rows[2].ram.write(5 * 4096, &[1])?;
    let mut bare = f64::MAX;
    let mut words = vec![0u8; 16 * 4096];
    for _ in 0..ROUNDS {
        bare = bare.min(stores(&VolatileSlice::from(words.as_mut_slice())));
        for row in &mut rows {
            row.best = row.best.min(stores(&row.ram.as_slice()));
        }
    }
    println!("{:<56}{bare:>6.2} ns", "memory without a bitmap");
    for Row { name, best, .. } in rows {
        println!("{name:<56}{best:>6.2} ns");
    }
    Ok(())
}
