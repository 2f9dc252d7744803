//! A process that may not have a barrier of all threads, as macOS and FreeBSD have none: readers
//! and writers then fence for themselves. The only test of its process, which is one for good.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ram_block::{HazardCell, RamBlock, RamPage, forbid_membarrier};

struct Noted(Arc<AtomicBool>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn readers_and_writers_fence_for_themselves() {
    assert!(forbid_membarrier());

    let is_dropped = Arc::new(AtomicBool::new(false));
    let cell = HazardCell::new(Arc::new(Noted(is_dropped.clone())));
    for _ in 0..3 {
        drop(cell.load());
        // That is the way without a fence.
        assert!(cell.load_at_once().is_none());
        thread::scope(|scope| {
            let read = || drop(cell.load());
            scope.spawn(read).join().unwrap();
            assert!(scope.spawn(|| cell.load_at_once().is_none()).join().unwrap());
        });
    }
    let (outer, inner) = (cell.load(), cell.load());
    cell.set(Arc::new(Noted(Arc::default())));
    drop(HazardCell::reclaim([&cell]));
    drop(inner);
    assert!(!is_dropped.load(Ordering::SeqCst));
    drop(outer);
    assert!(is_dropped.load(Ordering::SeqCst));

    let block = RamBlock::anonymous("ram", 1 << 20).unwrap();
    let log = block.dirty().claim("log").unwrap();
    let mut page = RamPage::<12>::new(&block, 0x5000).unwrap();
    // Each store is marked, after a fence: a page that is settled would have none.
    for count in 1..4 {
        page.store(8, count);
        assert_eq!(page.marked_stores(), count);
    }
    assert!(log.snapshot_and_clear(0..block.pages()).unwrap().commit().is_dirty(5));
    assert!(forbid_membarrier(), "that is so still");
}
