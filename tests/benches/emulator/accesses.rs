//! Single accesses of eight bytes, at hundreds of places of sixteen pages in turn.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use memory_region::Tlb;
use serde_json::{Value, json};

use crate::contestants::{Array, BASE, Machine, Memory};

const ACCESSES: u64 = 1 << 13;

/// Nanoseconds a load.
#[inline(never)]
fn loads<M: Memory>(memory: &mut M) -> f64 {
    let begin = Instant::now();
    let (mut at, mut sum) = (0, 0u64);
    for _ in 0..ACCESSES {
        sum = sum.wrapping_add(memory.load(BASE + black_box(at)).unwrap_or(0));
        at = (at + 4104) & 0xfff8;
    }
    black_box(sum);
    nanoseconds(begin)
}

/// Nanoseconds a store.
#[inline(never)]
fn stores<M: Memory>(memory: &mut M) -> f64 {
    let begin = Instant::now();
    let mut at = 0;
    for n in 0..ACCESSES {
        let stored = memory.store(BASE + black_box(at), n);
        assert!(stored.is_some());
        at = (at + 4104) & 0xfff8;
    }
    nanoseconds(begin)
}

#[allow(clippy::cast_precision_loss)] // for people
fn nanoseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e9 / ACCESSES as f64
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A contestant of a row, and its times.
pub struct Entry {
    name: &'static str,
    round: Box<dyn FnMut() -> f64>,
    times: Vec<f64>,
}

pub fn entry(name: &'static str, round: impl FnMut() -> f64 + 'static) -> Entry {
    Entry { name, round: Box::new(round), times: Vec::new() }
}

pub fn row(name: &str, mut entries: Vec<Entry>, rounds: usize) -> Value {
    for _ in 0..rounds {
        for Entry { round, times, .. } in &mut entries {
            times.push(round());
        }
    }
    let medians: Vec<f64> = entries.iter_mut().map(|entry| median(&mut entry.times)).collect();
    print!("{name:<38}");
    for time in &medians {
        print!("{time:>8.2}{:>6.2}x", time / medians[0]);
    }
    println!();
    let times = entries.iter().zip(&medians).map(|(entry, time)| (entry.name, *time));
    json!({ "row": name, "ns": times.collect::<std::collections::BTreeMap<_, _>>() })
}

/// The rows of single accesses.
pub fn run(rounds: usize) -> Result<Vec<Value>, Box<dyn Error>> {
    println!(
        "{:<38}{:>15}{:>15}{:>15}{:>15}{:>15}",
        "ns an access", "array", "TLB", "space", "view", "block"
    );
    let mut rows = Vec::new();
    let machine = Machine::new(0)?;
    let entries = {
        let (mut array, mut tlb) = (Array::new(), Tlb::<12>::new(&machine.space));
        let (mut space, mut view) = (machine.space.clone(), machine.space.view());
        let mut block = machine.ram.clone();
        vec![
            entry("array", move || loads(&mut array)),
            entry("tlb", move || loads(&mut tlb)),
            entry("space", move || loads(&mut space)),
            entry("view", move || loads(&mut view)),
            entry("block", move || loads(&mut block)),
        ]
    };
    rows.push(row("load", entries, rounds));
    for clients in [0, 1, 3, 7] {
        let machine = Machine::new(clients)?;
        let (mut array, mut tlb) = (Array::new(), Tlb::<12>::new(&machine.space));
        let (mut space, mut view) = (machine.space.clone(), machine.space.view());
        let mut block = machine.ram.clone();
        let entries = vec![
            entry("array", move || stores(&mut array)),
            entry("tlb", move || stores(&mut tlb)),
            entry("space", move || stores(&mut space)),
            entry("view", move || stores(&mut view)),
            entry("block", move || stores(&mut block)),
        ];
        rows.push(row(&format!("store, {clients} clients"), entries, rounds));
        drop(machine);
    }
    Ok(rows)
}
