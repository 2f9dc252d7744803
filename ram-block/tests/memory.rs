//! How much of the host's memory bitmaps take.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};

use ram_block::{DirtyMemory, PageSize};

/// An allocator that has no `alloc_zeroed` of its own, so that zeros are written: many have
/// none. A bitmap must not depend on it.
struct WritesZeros;

// SAFETY: passes all that it is asked to the system's allocator.
unsafe impl GlobalAlloc for WritesZeros {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: WritesZeros = WritesZeros;

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// 16 TiB of 4 KiB pages: 512 MiB of bits for a client, if all are touched. The only
/// test of this program, so that no other test changes the figures.
#[test]
fn a_clean_client_takes_no_memory_and_a_dropped_one_gives_it_back() {
    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    let dirty = DirtyMemory::new((16 * TIB) >> 12, PageSize::new(4096).unwrap());
    let before = resident();
    let logs: Vec<_> = (0..3).map(|_| dirty.claim("a log").unwrap()).collect();
    let clean = resident() - before;
    assert!(clean < 3 * MIB, "clean clients take {clean} bytes");
    dirty.mark(5 * TIB, TIB);
    // Not all of a word: chunks that are dirty as a whole take no words.
    dirty.merge(0, 1 << 28, &vec![u64::MAX - 1; 1 << 22]).unwrap();
    let dirtied = resident() - before;
    assert!(dirtied > 120 * MIB, "2 TiB dirty for three take {dirtied} bytes");
    drop(logs);
    let after = resident().saturating_sub(before);
    assert!(after < 8 * MIB, "dropped clients leave {after} bytes");
}
