//! Who empties the rings: the vCPU whose ring is full, or another thread before that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration_tests::bench::{Budget, left_out};
use kvm_accel::{DirtyTracking, KvmConfig};
use machines::guest::{DATA, programs};
use ram_block::DirtyClient;
use serde_json::{Value, json};

use crate::machine::{Machine, ram_at};

/// How long each guest is looked at.
const TIME: Duration = Duration::from_secs(2);

const ENTRIES: [u32; 3] = [4096, 16_384, 65_536];
const PAGES: [u64; 3] = [2_000, 20_000, 100_000];
/// Milliseconds between a thread's syncs.
const INTERVALS: [Option<u64>; 4] = [None, Some(100), Some(10), Some(1)];
/// How many rows the table has.
pub const ROWS: usize = ENTRIES.len() * PAGES.len() * INTERVALS.len();

/// A guest writes pages in turn, without an exit, to a log whose pages are taken and watched
/// again only through the ring. Nobody else empties it, or a thread does at an interval. The
/// guest's progress, and the time for which it stood still with a full ring.
pub fn table(budget: &mut Budget) -> Vec<Value> {
    println!(
        "{:<10} {:>7} {:>9} {:>10} {:>8} {:>12} {:>10} {:>9}",
        "entries", "pages", "reaper", "pages/s", "full", "stood still", "each full", "reaps/s"
    );
    let mut rows = Vec::new();
    for entries in ENTRIES {
        for pages in PAGES {
            for every in INTERVALS {
                // A row takes its time, whatever the share is.
                if budget.row(1.0, Instant::now()).is_none() {
                    left_out(&format!("{entries:<10} {pages:>7}"));
                    continue;
                }
                rows.extend(measure(entries, pages, every.map(Duration::from_millis)));
            }
        }
    }
    rows
}

fn measure(entries: u32, pages: u64, every: Option<Duration>) -> Option<Value> {
    let tracking = DirtyTracking::Ring { entries };
    let pml_flush_interval = Duration::MAX;
    let machine =
        Machine::new(1, KvmConfig { tracking, pml_flush_interval, ..KvmConfig::default() })?;
    let page = machine.block.page_size().bytes();
    let _log = machine.memory.claim_log(machine.ram, DirtyClient::MIGRATION).unwrap();
    let arguments = [ram_at(0), ram_at(pages * page), page, DATA];
    let guest = machine.start(0, &programs::increment_pages(), &arguments);
    let beat = || machine.word(DATA);
    while beat() < 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (done, before) = (AtomicBool::new(false), machine.stats());
    let (begin, first) = (Instant::now(), beat());
    std::thread::scope(|scope| {
        if let Some(every) = every {
            let (machine, done) = (&machine, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    std::thread::sleep(every);
                    machine.memory.sync_dirty_log(machine.ram).unwrap();
                }
            });
        }
        std::thread::sleep(TIME);
        done.store(true, Ordering::Release);
    });
    let (after, time) = (machine.stats(), begin.elapsed().as_secs_f64());
    guest.stop().unwrap();
    let found = after.pages - before.pages;
    let full = after.ring_full - before.ring_full;
    let still = (after.blocked - before.blocked).as_secs_f64();
    let reaps = after.reaps.calls - before.reaps.calls;
    let name = every.map_or("nobody".to_owned(), |every| format!("{} ms", every.as_millis()));
    #[allow(clippy::cast_precision_loss)] // for people
    let [rate, full_rate, reap_rate, each] = [
        found as f64 / time,
        full as f64 / time,
        reaps as f64 / time,
        still * 1e6 / full.max(1) as f64,
    ];
    println!(
        "{entries:<10} {pages:>7} {name:>9} {rate:>10.0} {full_rate:>6.1}/s {:>10.2} % {each:>7.0} \
            us {reap_rate:>9.0}",
        still / time * 100.0
    );
    Some(json!({
        "entries": entries, "pages": pages, "reaper": name, "pages_per_second": rate,
        "full_per_second": full_rate, "blocked": still / time, "ring_overruns": after.ring_overruns,
        "passes": beat() - first,
    }))
}
