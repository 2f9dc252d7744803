//! Starting, bringing and clearing logs of every size.

use std::time::{Duration, Instant};

use integration_tests::bench::{Budget, Share, left_out};
use kvm_accel::{DirtyLogStats, DirtyTracking, KvmConfig};
use ram_block::DirtyClient;
use serde_json::{Value, json};

use crate::machine::{Machine, Times, VIDEO};
use crate::options::Options;

/// Where the pages that the guest writes lie, at every size of RAM.
const SPREAD: u64 = 1 << 30;
/// Syncs of the video memory in a row.
const IN_A_ROW: u32 = 10;

/// How many rows the table has.
pub fn rows(options: &Options) -> usize {
    options.ways().count() * options.pages.len() * options.gib.len()
}

pub fn table(options: &Options, budget: &mut Budget) -> Vec<Value> {
    println!(
        "{:<8} {:>6} {:>7} {:>9} {:>9} {:>10} {:>6} {:>9} {:>9} {:>9}",
        "us", "GiB", "pages", "start", "sync", "KVM's part", "times", "clear", "VRAM", "the first"
    );
    let mut rows = Vec::new();
    // The largest come last: they are what is left out if the time is over.
    for gib in &options.gib {
        for (name, tracking) in options.ways() {
            for count in &options.pages {
                let Some(share) = budget.row(1.0, Instant::now()) else {
                    left_out(&format!("{name:<8} {gib:>6} {count:>7}"));
                    continue;
                };
                match measure(name, tracking, *gib, *count, options, share) {
                    Some(row) => rows.push(row),
                    None => println!("{name:<8} {gib:>6} {count:>7} not here"),
                }
            }
        }
    }
    rows
}

fn measure(
    name: &str,
    tracking: DirtyTracking,
    gib: u64,
    count: u64,
    options: &Options,
    share: Share,
) -> Option<Value> {
    let client = DirtyClient::MIGRATION;
    let pml_flush_interval = Duration::MAX; // the guest stands still when it is looked at
    let mut config = KvmConfig { tracking, pml_flush_interval, ..KvmConfig::default() };
    if let Some(gib) = options.slot_gib {
        config.max_slot_bytes = if gib == 0 { u64::MAX } else { gib << 30 };
    }
    let mut machine = Machine::new(gib, config)?;
    let [mut start, mut sync, mut calls, mut clear] = [(); 4].map(|()| Times::default());
    let [mut video, mut first] = [(); 2].map(|()| Times::default());
    let memory = machine.memory.clone();
    let mut vga = memory.claim_log(machine.video, DirtyClient::VGA).unwrap();
    let mut starts = 0;
    while share.goes_on(starts, options.rounds.min(10), Instant::now()) {
        starts += 1;
        drop(start.time(|| memory.claim_log(machine.ram, client).unwrap()));
    }
    // Of all RAM, as only such a log is harvested and cleared in two steps.
    let mut log = memory.claim_global_log(client).unwrap();
    let mut pages = vec![0; usize::try_from(machine.block.pages().div_ceil(64)).unwrap()];
    // The first rounds fill the guest's memory and take what a log starts with.
    let mut round = 0;
    while round < 2 || share.goes_on(round - 2, options.rounds, Instant::now()) {
        machine.write(count, SPREAD);
        let still = machine.vm.pause(Duration::from_secs(5)).unwrap();
        let before = machine.stats();
        let mut one = Times::default();
        one.time(|| memory.sync_dirty_log(machine.ram).unwrap());
        let after = machine.stats();
        pages.fill(0);
        let found = log.move_into(&machine.block, &mut pages).unwrap();
        let mut two = Times::default();
        two.time(|| log.clear(&machine.block, 0..machine.block.len()).unwrap());
        let mut three = Times::default();
        three.time(|| memory.sync_dirty_log(machine.video).unwrap());
        let mut four = Times::default();
        four.time(|| {
            (0..IN_A_ROW).for_each(|_| memory.sync_dirty_log(machine.video).unwrap());
        });
        drop(still);
        vga.snapshot_and_clear(0..VIDEO).unwrap().commit();
        if round >= 2 {
            assert!(found >= count, "{found} of {count} pages were found");
            sync.extend(one);
            clear.extend(two);
            first.extend(three);
            video.add(four.total() / IN_A_ROW);
            let spent = |stats: &DirtyLogStats| stats.gets.time + stats.resets.time;
            calls.add(spent(&after) - spent(&before));
        }
        round += 1;
    }
    println!(
        "{name:<8} {gib:>6} {count:>7} {:>9.1} {:>9.1} {:>10.1} {:>6.2} {:>9.1} {:>9.2} {:>9.1}",
        start.median(),
        sync.median(),
        calls.median(),
        sync.median() / calls.median().max(0.001),
        clear.median(),
        video.median(),
        first.median()
    );
    Some(json!({
        "tracking": name, "gib": gib, "pages": count, "start_us": start.median(),
        "sync_us": sync.median(), "kvm_us": calls.median(), "clear_us": clear.median(),
        "video_sync_us": video.median(), "first_video_sync_us": first.median(),
    }))
}
