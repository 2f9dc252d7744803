//! What memory behind a TLB costs a hart, beside an array with bounds checks.
//!
//! `cargo bench -p rv64 [-- --rounds N]`
//!
//! Millions of instructions a second, medians of rounds in which both take turns; and the TLB's
//! time as a multiple of the array's. With clients, their logs are on; the last rows add a harvest
//! of all of them every 1/60 s.

mod programs;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memory_region::MemoryMap;
use ram_block::{DirtyClaim, RamBlock};
use rv64::{Bus, CodePages, Exit, Hart, TlbBus, VecBus};

use programs::{BASE, DATA, SIZE, data, memcpy, memset, quick_sort, sieve};

struct Machine {
    ram: Arc<RamBlock>,
    logs: Vec<DirtyClaim>,
    bus: TlbBus<()>,
}

fn machine(clients: usize) -> Result<Machine, Box<dyn Error>> {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", SIZE)?;
    ram.populate(0..SIZE)?;
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 64)?;
        let region = map.ram("ram", ram.clone())?;
        map.add_subregion(root, BASE, region)?;
        Ok(root)
    })?;
    let code = Arc::new(CodePages::new(&ram)?);
    let bus = TlbBus::new(&map.address_space("hart", root)?, &code, ());
    let claim = |n| ram.dirty().claim(format!("log {n}").as_str());
    let logs = (0..clients).map(claim).collect::<Result<_, _>>()?;
    Ok(Machine { ram, logs, bus })
}

/// Runs a guest once; returns the instructions a second and a sum of its data.
fn round<B: Bus>(hart: &mut Hart, bus: &mut B, data: &[u8]) -> (f64, u64) {
    for (at, word) in (DATA..).step_by(8).zip(data.chunks_exact(8)) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        bus.store(at, word).expect("RAM");
    }
    hart.state.pc = BASE;
    let begin = Instant::now();
    let (exit, steps) = hart.run(bus, u64::MAX);
    let time = begin.elapsed();
    assert_eq!(exit, Exit::Wait);
    let words = (DATA..DATA + data.len() as u64).step_by(8);
    let sum = words
        .fold(0, |sum: u64, at| sum.rotate_left(5).wrapping_add(bus.load::<u64>(at).expect("RAM")));
    #[allow(clippy::cast_precision_loss)] // for people
    let rate = steps as f64 / time.as_secs_f64();
    (rate, sum)
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn compare(
    code: &[u8],
    clients: usize,
    hertz: u64,
    rounds: usize,
) -> Result<[f64; 2], Box<dyn Error>> {
    let data = data();
    let mut array = VecBus::new(BASE, usize::try_from(SIZE)?);
    array.bytes[..code.len()].copy_from_slice(code);
    let Machine { ram, logs, mut bus } = machine(clients)?;
    ram.write(0, code)?;
    let mut harts = [Hart::new(0, BASE), Hart::new(0, BASE)];
    let mut rates = [Vec::new(), Vec::new()];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        if hertz > 0 {
            scope.spawn(|| harvest(&ram, &logs, hertz, &stop));
        }
        for _ in 0..rounds {
            let (rate, sum) = round(&mut harts[0], &mut array, &data);
            rates[0].push(rate);
            let (rate, same) = round(&mut harts[1], &mut bus, &data);
            rates[1].push(rate);
            assert_eq!(sum, same, "results differ");
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(rates.map(|mut rates| median(&mut rates)))
}

/// What a display, a migration and a checkpoint do.
fn harvest(ram: &RamBlock, logs: &[DirtyClaim], hertz: u64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for log in logs {
            drop(log.snapshot_and_clear(0..ram.pages()).map(|harvest| harvest.commit()));
        }
        thread::sleep(Duration::from_nanos(1_000_000_000 / hertz));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--rounds").skip(1);
    let rounds = arguments.next().map_or(Ok(101), |number| number.parse())?;
    println!("{:<24}{:>12}{:>12}{:>10}", "MIPS", "array", "TLB", "time");
    let guests = [
        ("memset", memset()),
        ("memcpy", memcpy()),
        ("quick sort", quick_sort()),
        ("sieve", sieve()),
    ];
    for (clients, hertz) in [(0, 0), (3, 0), (3, 60)] {
        let with = if hertz > 0 { ", 60 Hz" } else { "" };
        println!("{clients} clients{with}");
        for (name, code) in &guests {
            let [array, tlb] = compare(code, clients, hertz, rounds)?.map(|rate| rate / 1e6);
            println!("{:<24}{array:>12.0}{tlb:>12.0}{:>9.2}x", format!("  {name}"), array / tlb);
        }
    }
    Ok(())
}
