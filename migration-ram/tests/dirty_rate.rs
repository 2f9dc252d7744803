//! Measurements compared with a model, at the same time as migrations, and with an accelerator that
//! logs only the first write to a page.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memory_region::{ListenerError, MapError, MemoryListener, MemoryMap, Section, ViewChange};
use migration_ram::{DirtyRate, DirtyRateError, Migrated, Precopy, receive};
use proptest::prelude::*;
use ram_block::{DirtyClient, PageSize, RamBlock};

const PAGES: u64 = 300;

fn page() -> u64 {
    PageSize::host().bytes()
}

fn machine(blocks: &[&str]) -> (Arc<MemoryMap>, Vec<Arc<RamBlock>>) {
    let memory = MemoryMap::new();
    let new = |id: &&str| RamBlock::anonymous(id, PAGES * page()).unwrap();
    let blocks: Vec<_> = blocks.iter().map(new).collect();
    for block in &blocks {
        memory.transaction(|map| map.ram(block.id(), block.clone())).unwrap();
    }
    (memory, blocks)
}

/// Ends the threads of a test, also when it fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(block: &RamBlock, number: u64) {
    block.write(number * page() + 8, &[1]).unwrap();
}

/// An accelerator like KVM with manual protection: a log begins with all pages reported, a page is
/// reported with each sync until it is cleared, and only the clear re-arms it.
#[derive(Default)]
struct Accelerator(Mutex<Log>);

#[derive(Default)]
struct Log {
    on: bool,
    /// Pages that were written or not cleared yet.
    dirty: BTreeSet<u64>,
    /// Writes that faulted; the guest pays for each.
    faults: u64,
}

impl Accelerator {
    /// The guest writes a page; only this accelerator logs it.
    fn write(&self, number: u64) {
        let mut log = self.0.lock().unwrap();
        if log.on && log.dirty.insert(number) {
            log.faults += 1;
        }
    }
}

impl MemoryListener for Accelerator {
    fn name(&self) -> &str {
        "accelerator"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut log = self.0.lock().unwrap();
        for relogged in &change.log_changed {
            let on = !relogged.section.log().is_empty();
            if on && !log.on {
                log.dirty = (0..PAGES).collect();
            }
            log.on = on;
        }
        Ok(())
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        let log = self.0.lock().unwrap();
        let pages: Vec<u64> = log.dirty.iter().copied().collect();
        section.ram().unwrap().dirty().mark_pages(&pages);
        Ok(())
    }

    fn log_clear(&self, _: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let pages = bytes.start / page()..bytes.end.div_ceil(page());
        self.0.lock().unwrap().dirty.retain(|number| !pages.contains(number));
        Ok(())
    }
}

/// A machine of one block, whose accelerator is this.
fn accelerated() -> (Arc<MemoryMap>, Arc<RamBlock>, Arc<Accelerator>) {
    let (memory, accelerator) = (MemoryMap::new(), Arc::<Accelerator>::default());
    let block = RamBlock::anonymous("ram", PAGES * page()).unwrap();
    let root = memory.transaction(|map| {
        let root = map.container("root", 1 << 64)?;
        let ram = map.ram("ram", block.clone())?;
        map.add_subregion(root, 0, ram)?;
        Ok(root)
    });
    let space = memory.address_space("memory", root.unwrap()).unwrap();
    memory.add_listener(&space, accelerator.clone()).unwrap();
    (memory, block, accelerator)
}

proptest! {
    /// The curve is the count of distinct pages that were written since it began.
    #[test]
    fn the_curve_counts_distinct_pages(
        before in prop::collection::vec((0usize..2, 0..PAGES), 0..50),
        parts in prop::collection::vec(prop::collection::vec((0usize..2, 0..PAGES), 0..80), 1..6),
    ) {
        let (memory, blocks) = machine(&["a", "b"]);
        let mut vga = memory.claim_global_log(DirtyClient::VGA).unwrap();
        before.iter().for_each(|(n, number)| write(&blocks[*n], *number));
        let mut rate = DirtyRate::begin(&memory).unwrap();
        let mut written = [BTreeSet::new(), BTreeSet::new()];
        let mut expected = Vec::new();
        for part in &parts {
            for (n, number) in part {
                write(&blocks[*n], *number);
                written[*n].insert(*number);
            }
            let sample = rate.sample().unwrap();
            expected.push([written[0].len() as u64, written[1].len() as u64]);
            prop_assert_eq!(sample.pages, expected[expected.len() - 1].iter().sum::<u64>());
        }
        let report = rate.finish().unwrap();
        expected.push(*expected.last().unwrap());
        let sums: Vec<u64> = expected.iter().map(|counts| counts.iter().sum()).collect();
        prop_assert_eq!(report.curve.iter().map(|at| at.pages).collect::<Vec<_>>(), sums);
        prop_assert!(report.curve.iter().all(|at| at.bytes == at.pages * page()));
        prop_assert!(report.curve.is_sorted_by_key(|at| at.time));
        for (n, block) in report.blocks.iter().enumerate() {
            prop_assert_eq!(&block.id, ["a", "b"][n]);
            let counts: Vec<_> = block.curve.iter().map(|at| at.pages).collect();
            prop_assert_eq!(counts, expected.iter().map(|counts| counts[n]).collect::<Vec<_>>());
        }
        prop_assert_eq!(report.len, 2 * PAGES * page());
        // Another client's bits are all there.
        for (n, block) in blocks.iter().enumerate() {
            let all = before.iter().filter(|(at, _)| *at == n).map(|(_, number)| *number);
            let all: BTreeSet<u64> = all.chain(written[n].iter().copied()).collect();
            let harvest = vga.snapshot_and_clear(block, 0..PAGES * page()).unwrap();
            prop_assert_eq!(harvest.count(), all.len() as u64);
        }
    }
}

#[test]
fn what_a_log_begins_with_does_not_count_and_a_page_faults_once() {
    let (memory, _, accelerator) = accelerated();
    let mut rate = DirtyRate::begin(&memory).unwrap();
    assert_eq!(rate.sample().unwrap().pages, 0);
    for _ in 0..3 {
        (10..20).for_each(|number| accelerator.write(number));
        assert_eq!(rate.sample().unwrap().pages, 10);
    }
    assert_eq!(accelerator.0.lock().unwrap().faults, 10);
    accelerator.write(PAGES - 1);
    assert_eq!(rate.finish().unwrap().working_set().pages, 11);
    assert!(!accelerator.0.lock().unwrap().on);
}

#[test]
fn a_log_that_is_on_already_is_watched_anew() {
    let (memory, block, accelerator) = accelerated();
    let mut log = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let rate = DirtyRate::begin(&memory).unwrap();
    accelerator.write(7);
    assert_eq!(rate.finish().unwrap().working_set().pages, 1);
    assert!(accelerator.0.lock().unwrap().on);
    // The other client has the bits that the log began with.
    let mut words = vec![0; usize::try_from(PAGES.div_ceil(64)).unwrap()];
    assert_eq!(log.move_into(&block, &mut words).unwrap(), PAGES);
    drop(log);
}

#[test]
fn however_it_ends_the_log_is_off() {
    let (memory, blocks) = machine(&["ram"]);
    let is_off = || blocks[0].dirty().enabled().is_empty();
    let rate = DirtyRate::begin(&memory).unwrap();
    assert!(!is_off());
    drop(rate);
    assert!(is_off());

    let mut asked = 0;
    let wanted = || {
        asked += 1;
        asked < 4
    };
    let error = DirtyRate::measure_while(&memory, Duration::MAX, wanted).unwrap_err();
    assert!(matches!(error, DirtyRateError::Cancelled { duration: Duration::MAX, .. }), "{error}");
    assert!(is_off());

    // All client numbers can be used, and each measurement releases its own.
    for _ in 0..3 {
        let rates: Vec<_> = (0..5).map(|_| DirtyRate::begin(&memory).unwrap()).collect();
        write(&blocks[0], 3);
        let refused = DirtyRate::begin(&memory).unwrap_err();
        assert!(matches!(refused, DirtyRateError::Log(MapError::Dirty(_))), "{refused}");
        for rate in rates {
            assert_eq!(rate.finish().unwrap().working_set().pages, 1);
        }
        assert!(is_off());
    }
}

#[test]
fn a_block_that_changes_meanwhile_is_named() {
    let memory = MemoryMap::new();
    let block = RamBlock::anonymous("ram", PAGES * page()).unwrap();
    let region = memory.transaction(|map| map.ram("ram", block.clone())).unwrap();
    let mut rate = DirtyRate::begin(&memory).unwrap();
    memory.transaction(|map| map.remove(region)).unwrap();
    let gone = rate.sample().unwrap_err();
    assert!(matches!(&gone, DirtyRateError::Interrupted { block } if block == "ram"), "{gone}");
    memory.transaction(|map| map.ram("ram", block.clone())).unwrap();
    let back = rate.sample().unwrap_err();
    assert!(matches!(back, DirtyRateError::Interrupted { .. }), "{back}");
    // A block that is added after the measurement began is not measured.
    drop(rate);
    let rate = DirtyRate::begin(&memory).unwrap();
    let late = RamBlock::anonymous("late", PAGES * page()).unwrap();
    memory.transaction(|map| map.ram("late", late.clone())).unwrap();
    write(&block, 1);
    assert_eq!(rate.finish().unwrap().working_set().pages, 1);
}

#[test]
fn the_blocking_way_looks_several_times() {
    let (memory, blocks) = machine(&["ram"]);
    let ended = AtomicBool::new(false);
    let report = std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                write(&blocks[0], number % 50);
                number += 1;
            }
        });
        let _ends = Ends(&ended);
        DirtyRate::measure(&memory, Duration::from_millis(160)).unwrap()
    });
    assert_eq!(report.curve.len(), 5);
    assert!(report.curve[4].time >= Duration::from_millis(160));
    assert!(report.pages_per_second() > 0.0 && report.bytes_per_second() > 0.0);
    assert_eq!(report.working_set().pages, 50);
    assert_eq!(report.to_string().lines().count(), 7, "{report}");
}

/// Migrations and measurements at the same time, repeatedly, while memory is written: they do not
/// affect each other.
#[test]
fn a_migration_is_not_disturbed() {
    let (memory, blocks) = machine(&["ram"]);
    let (ended, paused) = (AtomicBool::new(false), Mutex::new(()));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut count = 0u64;
            while !ended.load(Ordering::Relaxed) {
                count += 1;
                let _running = paused.lock().unwrap();
                let at = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) % PAGES * page();
                blocks[0].write(at, &count.to_le_bytes()).unwrap();
            }
        });
        threads.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let report = DirtyRate::measure(&memory, Duration::from_millis(1)).unwrap();
                assert!(report.working_set().pages <= PAGES);
            }
        });
        let _ends = Ends(&ended);
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let mut stream = Vec::new();
            let precopy = Precopy::new(memory.clone()).max_rounds(3).downtime(Duration::ZERO);
            let pause = || paused.lock().map_err(|_| "the writer is gone".into());
            let Migrated { paused, .. } = precopy.run(&mut stream, pause, |_| ()).unwrap();
            let twin = RamBlock::anonymous("ram", PAGES * page()).unwrap();
            receive(&mut stream.as_slice(), std::slice::from_ref(&twin)).unwrap();
            let contents = |block: &RamBlock| {
                let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
                block.read(0, &mut bytes).unwrap();
                bytes
            };
            let equal = contents(&twin) == contents(&blocks[0]);
            drop(paused);
            assert!(equal, "source and destination differ");
        }
    });
}
