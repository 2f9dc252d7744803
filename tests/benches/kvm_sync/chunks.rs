//! How much to clear by one call.

use std::time::{Duration, Instant};

use bitvec::prelude::{BitVec, Lsb0};
use integration_tests::bench::{Budget, Share, left_out};
use kvm_accel::{DirtyTracking, KvmConfig};
use ram_block::DirtyClient;
use serde_json::{Value, json};

use crate::machine::{Machine, Times};
use crate::options::Options;

/// Chunks, in 64 pages.
const CHUNKS: [u64; 8] = [1, 4, 16, 32, 128, 512, 2048, 4096];

/// A gibibyte is cleared as a migration does it, chunk by chunk, at each share of written
/// pages, by chunks of each size: the time of all, in microseconds, and the calls.
pub fn table(options: &Options, budget: &mut Budget) -> Vec<Value> {
    println!("{:<8} {:>7} {:>10} {:>9} {:>7}", "us", "pages", "chunk, KiB", "clear", "calls");
    let mut rows = Vec::new();
    for count in options.pages.iter().filter(|count| **count > 0) {
        for chunk in CHUNKS {
            match budget.row(1.0, Instant::now()) {
                Some(share) => rows.extend(measure(*count, chunk, options.rounds, share)),
                None => left_out(&format!("chunks of {} KiB, {count} pages", chunk * 256)),
            }
        }
    }
    rows
}

/// How many rows the table has.
pub fn rows(options: &Options) -> usize {
    options.pages.iter().filter(|count| **count > 0).count() * CHUNKS.len()
}

fn measure(count: u64, chunk: u64, rounds: usize, share: Share) -> Option<Value> {
    let page = ram_block::PageSize::host().bytes();
    let clear_chunk_bytes = chunk * 64 * page;
    let tracking = DirtyTracking::ManualProtect;
    let mut machine =
        Machine::new(1, KvmConfig { tracking, clear_chunk_bytes, ..KvmConfig::default() })?;
    let memory = machine.memory.clone();
    let mut log = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let mut pages =
        BitVec::<u64, Lsb0>::repeat(false, usize::try_from(machine.block.pages()).unwrap());
    let (mut times, mut calls) = (Times::default(), 0);
    let mut round = 0;
    while round < 2 || share.goes_on(round - 2, rounds, Instant::now()) {
        machine.write(count, 1 << 30);
        let still = machine.vm.pause(Duration::from_secs(5)).unwrap();
        memory.sync_dirty_log(machine.ram).unwrap();
        pages.fill(false);
        log.move_into(&machine.block, pages.as_raw_mut_slice()).unwrap();
        let before = machine.stats();
        let mut one = Times::default();
        one.time(|| {
            let mut watched = 0;
            for number in pages.iter_ones() {
                let at = number as u64 * page;
                if at >= watched {
                    let start = at / clear_chunk_bytes * clear_chunk_bytes;
                    watched = (start + clear_chunk_bytes).min(machine.block.len());
                    log.clear(&machine.block, start..watched).unwrap();
                }
            }
        });
        drop(still);
        if round >= 2 {
            times.extend(one);
            calls = machine.stats().clears.calls - before.clears.calls;
        }
        round += 1;
    }
    let kib = clear_chunk_bytes >> 10;
    println!("{:<8} {count:>7} {kib:>10} {:>9.1} {calls:>7}", "manual", times.median());
    Some(json!({
        "pages": count, "chunk_kib": kib, "clear_us": times.median(), "calls": calls,
    }))
}
