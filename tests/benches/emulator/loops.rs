//! Whole programs of an interpreter, with their memory behind a TLB or a space.

use std::cell::RefCell;
use std::error::Error;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memory_region::Tlb;
use serde_json::Value;

use crate::accesses::{Entry, entry, row};
use crate::contestants::{Array, Machine, Memory};
use crate::interpreter::{Guest, guests, run_decoded, run_encoded};

/// Nanoseconds an instruction of a guest, which finds its data as at first.
fn timed<M: Memory + 'static>(
    name: &'static str,
    guest: &Rc<Guest>,
    mut memory: M,
    decoded: bool,
    sums: &Rc<RefCell<Vec<u64>>>,
) -> Entry {
    let (guest, sums) = (guest.clone(), sums.clone());
    entry(name, move || {
        guest.load(&mut memory);
        let begin = Instant::now();
        let count = if decoded {
            run_decoded(&mut memory, black_box(&guest.program.0))
        } else {
            run_encoded(&mut memory)
        };
        let time = begin.elapsed();
        sums.borrow_mut().push(guest.sum(&mut memory));
        #[allow(clippy::cast_precision_loss)] // for people
        let count = count.expect("no guest has a fault") as f64;
        time.as_secs_f64() * 1e9 / count
    })
}

/// The rows of programs.
pub fn run(rounds: usize) -> Result<Vec<Value>, Box<dyn Error>> {
    println!("{:<38}{:>15}{:>15}{:>15}", "ns an instruction", "array", "TLB", "space");
    let mut rows = Vec::new();
    for (clients, hertz) in [(0, 0), (3, 0), (3, 60)] {
        for guest in guests().into_iter().map(Rc::new) {
            for decoded in [true, false] {
                let machine = Machine::new(clients)?;
                let sums = Rc::<RefCell<Vec<u64>>>::default();
                let tlb: Tlb = Tlb::new(&machine.space);
                let entries = vec![
                    timed("array", &guest, Array::new(), decoded, &sums),
                    timed("tlb", &guest, tlb, decoded, &sums),
                    timed("space", &guest, machine.space.clone(), decoded, &sums),
                ];
                let how = if decoded { "decoded" } else { "from memory" };
                let with = if hertz > 0 { ", 60 Hz" } else { "" };
                let name = format!("{}, {how}, {clients} clients{with}", guest.name);
                let stop = AtomicBool::new(false);
                let row = thread::scope(|scope| {
                    if hertz > 0 {
                        scope.spawn(|| harvest(&machine, hertz, &stop));
                    }
                    let row = row(&name, entries, rounds);
                    stop.store(true, Ordering::Relaxed);
                    row
                });
                rows.push(row);
                let sums = sums.borrow();
                assert!(sums.iter().all(|sum| *sum == sums[0]), "results differ");
            }
        }
    }
    Ok(rows)
}

/// What a display, a migration and a checkpoint do.
fn harvest(machine: &Machine, hertz: u64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for log in &machine.logs {
            let harvest = log.snapshot_and_clear(0..machine.ram.pages());
            drop(harvest.map(|harvest| harvest.commit()));
        }
        thread::sleep(Duration::from_nanos(1_000_000_000 / hertz));
    }
}
