//! Watches and reports of one block, with real threads.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::block::ram_block::RamBlock;
use crate::dirty::client::DirtyClient;

const MIB: u64 = 1 << 20;

/// A block of which reports are counted page by page.
fn watched(pages: Range<u64>) -> (Arc<RamBlock>, CodeWatch, Arc<[AtomicU64]>) {
    let ram = RamBlock::anonymous("ram", 16 * MIB).unwrap();
    let reports: Arc<[AtomicU64]> = (0..ram.pages()).map(|_| AtomicU64::new(0)).collect();
    let told = reports.clone();
    let hook = move |page: u64| {
        told[crate::page::index(page)].fetch_add(1, Ordering::SeqCst);
    };
    let watch = ram.dirty().watch_code(hook).unwrap();
    watch.watch(pages).unwrap();
    (ram, watch, reports)
}

fn reported(reports: &[AtomicU64]) -> Vec<(usize, u64)> {
    let counts = reports.iter().map(|count| count.load(Ordering::SeqCst)).enumerate();
    counts.filter(|(_, count)| *count != 0).collect()
}

#[test]
fn every_way_to_write_reports_a_watched_page_once() {
    let (ram, watch, reports) = watched(10..14);
    let page = ram.page_size().bytes();
    ram.write(9 * page, &vec![1; 4096]).unwrap();
    assert_eq!(reported(&reports), []);
    ram.write(10 * page + 7, &[1]).unwrap(); // through vm-memory
    ram.dirty().merge(3, 20, &[1 << 8]).unwrap(); // 11, as KVM's log
    assert_eq!(ram.dirty().mark_pages(&[12, 900, 12]), 3); // as a ring
    ram.dirty().mark(0, ram.len()); // a range
    ram.write(10 * page, &[1]).unwrap();
    assert_eq!(reported(&reports), [(10, 1), (11, 1), (12, 1), (13, 1)]);
    assert!(!watch.is_watched(10));
    watch.watch(10..11).unwrap();
    ram.discard(10 * page, page).unwrap();
    assert_eq!(reports[10].load(Ordering::SeqCst), 2);
}

#[test]
fn one_translator_watches_until_it_is_dropped() {
    let (ram, watch, reports) = watched(0..4);
    let dirty = ram.dirty();
    assert_eq!(dirty.watch_code(|_| ()).unwrap_err(), DirtyError::Watched);
    let refused = watch.watch(4095..4097).unwrap_err();
    assert_eq!(refused, DirtyError::OutOfRange { start: 4095, end: 4097, pages: 4096 });
    assert!(!dirty.is_dirty(DirtyClient::CODE, 3) && dirty.is_dirty(DirtyClient::CODE, 4));
    watch.unwatch(0..1);
    drop(watch);
    ram.write(0, &[1; 20_000]).unwrap();
    assert_eq!(reported(&reports), []);
    assert!(!dirty.is_dirty(DirtyClient::CODE, 4), "off");
    let again = dirty.watch_code(|_| ()).unwrap();
    assert!(!again.is_watched(3), "what was watched before is forgotten");
}

#[test]
fn a_report_makes_what_was_read_before_out_of_date() {
    let (ram, watch, _) = watched(0..0);
    let before = watch.watch(5..6).unwrap();
    assert!(watch.is_current(before));
    ram.write(0, &[1]).unwrap();
    assert!(watch.is_current(before), "that page is not watched");
    ram.write(0x5000, &[1]).unwrap();
    assert!(!watch.is_current(before));
    assert!(watch.is_current(watch.watch(5..6).unwrap()));
}

/// Writers meet at the same watched pages, by every way in, round after round.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn of_many_writers_one_reports() {
    const ROUNDS: u64 = 300;
    let (ram, watch, reports) = watched(0..0);
    let start = std::sync::Barrier::new(4);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for way in 0..3u64 {
            let (ram, start, stop) = (&ram, &start, &stop);
            scope.spawn(move || {
                loop {
                    start.wait();
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    match way {
                        0 => ram.dirty().mark(0, 200 * 4096),
                        1 => drop(ram.dirty().merge(0, 200, &[u64::MAX; 4])),
                        _ => {
                            for page in 0..200 {
                                ram.write(page * 4096, &[1]).unwrap();
                            }
                        }
                    }
                    start.wait();
                }
            });
        }
        for round in 1..=ROUNDS {
            watch.watch(50..150).unwrap();
            start.wait();
            start.wait();
            let expected: Vec<_> = (50..150).map(|page| (page, round)).collect();
            assert_eq!(reported(&reports), expected);
        }
        stop.store(true, Ordering::SeqCst);
        start.wait();
    });
}

#[test]
fn a_hook_may_use_its_block_and_end_the_watch() {
    let ram = RamBlock::anonymous("ram", 16 * MIB).unwrap();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::new(Mutex::new(None::<CodeWatch>));
    let owned = ram.dirty().claim("the hook's").unwrap();
    let claimed = Arc::new(Mutex::new(None));
    let hook = {
        let (block, reports, watch) = (Arc::downgrade(&ram), reports.clone(), watch.clone());
        let claimed = claimed.clone();
        move |page| {
            let _ = &owned; // dropped with the hook
            let block = block.upgrade().unwrap();
            reports.lock().unwrap().push(page);
            match page {
                1 => block.write(0x2000, &[1]).unwrap(),
                2 => {
                    let watch = watch.lock().unwrap();
                    let watch = watch.as_ref().unwrap();
                    assert_eq!(watch.watch(7..8), Err(DirtyError::CalledFromHook));
                    watch.unwatch(5..6);
                    claimed.lock().unwrap().replace(block.dirty().claim(DirtyClient::VGA).unwrap());
                }
                _ => drop(watch.lock().unwrap().take()),
            }
        }
    };
    let new = ram.dirty().watch_code(hook).unwrap();
    new.watch(1..6).unwrap();
    *watch.lock().unwrap() = Some(new);
    ram.write(0x1000, &[1]).unwrap();
    assert_eq!(*reports.lock().unwrap(), [1, 2]);
    assert!(ram.dirty().enabled().contains(DirtyClient::VGA));
    ram.write(0x3000, &[1; 0x3000]).unwrap();
    assert_eq!(*reports.lock().unwrap(), [1, 2, 3], "the watch is gone after page 3");
    assert_eq!(ram.dirty().enabled().to_string(), "vga", "what the hook owned is gone");
    ram.dirty().watch_code(|_| ()).unwrap();
}

#[cfg(panic = "unwind")]
#[test]
fn a_hook_that_panics_takes_no_bits_with_it() {
    let ram = RamBlock::anonymous("ram", MIB).unwrap();
    let _log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
    let watch = ram.dirty().watch_code(|_| std::panic::resume_unwind(Box::new("hook"))).unwrap();
    watch.watch(3..4).unwrap();
    let write = || ram.write(0x3000, &[1]);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)).is_err());
    assert!(ram.dirty().is_dirty(DirtyClient::MIGRATION, 3));
    assert!(watch.is_watched(3), "the next write reports it again");
}

#[test]
fn what_is_no_longer_watched_is_not_current() {
    let (_ram, watch, _) = watched(0..0);
    let watching = watch.watch(5..6).unwrap();
    watch.unwatch(5..6);
    assert!(!watch.is_current(watching));
}

/// A writer reads the bits only while a page is watched.
#[test]
fn the_client_is_on_while_a_page_is_watched() {
    let (ram, watch, reports) = watched(0..0);
    let is_on = || ram.dirty().switches().load(Ordering::SeqCst) & 1 << DirtyClient::CODE.number();
    assert_eq!(is_on(), 0, "a watch that watches nothing");
    watch.watch(5..7).unwrap();
    watch.watch(6..9).unwrap();
    ram.write(5 * 4096, &[1; 3 * 4096]).unwrap();
    assert_ne!(is_on(), 0, "page 8 is watched");
    ram.write(8 * 4096, &[1]).unwrap();
    assert_eq!(is_on(), 0, "the last one is reported");
    watch.watch(5..7).unwrap();
    watch.unwatch(0..6);
    assert_ne!(is_on(), 0);
    watch.unwatch(6..7);
    assert_eq!(is_on(), 0, "the last one is not watched any more");
    watch.watch(0..ram.pages()).unwrap();
    ram.resize(MIB).unwrap();
    assert_ne!(is_on(), 0);
    ram.dirty().mark(0, MIB);
    assert_eq!(is_on(), 0, "what goes with a resize is reported too");
    assert_eq!(reported(&reports).len(), 4096);
    watch.watch(5..7).unwrap();
    drop(watch);
    assert_eq!(is_on(), 0, "dropped");
    let again = ram.dirty().watch_code(|_| ()).unwrap();
    again.watch(1..2).unwrap();
    assert_ne!(is_on(), 0, "the count starts anew");
}

/// A write of the hook to its own page ends, and is reported if the page is watched again.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn a_hook_may_write_the_page_that_it_is_told_of() {
    let ram = RamBlock::anonymous("ram", MIB).unwrap();
    let (told, watch) =
        (Arc::new(AtomicU64::new(0)), Arc::new(std::sync::OnceLock::<CodeWatch>::new()));
    let hook = {
        let (block, told, watch) = (Arc::downgrade(&ram), told.clone(), watch.clone());
        move |page| {
            let block = block.upgrade().unwrap();
            block.write(page * 4096, &[1]).unwrap();
            // Another thread translates the page again, once.
            if page == 2 && told.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::scope(|scope| {
                    scope.spawn(|| watch.get().unwrap().watch(2..3).unwrap());
                });
                block.write(page * 4096, &[2]).unwrap();
            }
        }
    };
    watch.set(ram.dirty().watch_code(hook).unwrap()).unwrap();
    let watch = watch.get().unwrap();
    watch.watch(1..3).unwrap();
    ram.write(4096, &[1]).unwrap();
    assert!(!watch.is_watched(1));
    ram.write(2 * 4096, &[1]).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 2, "once more for the new watch");
    assert!(!watch.is_watched(2));
}

/// Also if the hook of another page of the block is what wrote it: another thread that finds
/// its bit clear must know that the hook has returned.
#[test]
fn a_page_is_watched_until_its_hook_has_returned() {
    let ram = RamBlock::anonymous("ram", MIB).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let (block, seen) = (Arc::downgrade(&ram), seen.clone());
        move |page| {
            let block = block.upgrade().unwrap();
            if page < 3 {
                block.write((page + 1) * 4096, &[1]).unwrap();
            }
            let is_watched = |page| !block.dirty().is_dirty(DirtyClient::CODE, page);
            seen.lock().unwrap().push((page, (1..5).filter(|page| is_watched(*page)).collect()));
        }
    };
    let watch = ram.dirty().watch_code(hook).unwrap();
    watch.watch(1..5).unwrap();
    ram.write(4096, &[1]).unwrap();
    let expected: [(u64, Vec<u64>); 3] =
        [(3, vec![1, 2, 3, 4]), (2, vec![1, 2, 4]), (1, vec![1, 4])];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert!(!watch.is_watched(1) && watch.is_watched(4));
}
