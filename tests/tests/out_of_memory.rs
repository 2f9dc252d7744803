//! Checkpoints of a program that runs out of memory.
//!
//! A large allocation that is not asked for whether there is memory for it ends the program.
#![allow(unsafe_code)] // an allocator that fails

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory_region::MemoryMap;
use migration_ram::{CheckpointError, Checkpoints};
use ram_block::RamBlock;

/// How many large allocations succeed from now on.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);
/// Bytes of an allocation that may fail. Smaller ones are names, lists of blocks and the like.
const LARGE: usize = 1500;

struct Scarce;

// SAFETY: memory is the system's, or none; the other methods are the trait's, on top of these.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let take = |left: u64| if left == u64::MAX { None } else { left.checked_sub(1) };
        let is_large = layout.size() >= LARGE;
        if is_large && LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) == Err(0) {
            return ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `alloc` got it from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

const PAGES: u64 = 1500;
/// Two pages in three are written, and none is equal to another.
const STEP: u64 = 4096 + 2048;

fn write(ram: &RamBlock, round: u64) {
    for n in 0..PAGES {
        ram.write(n * STEP, &(n << 8 | round).to_le_bytes()).unwrap();
    }
}

fn holds(ram: &RamBlock, round: u64) -> bool {
    (0..PAGES).all(|n| {
        let mut word = [0; 8];
        ram.read(n * STEP, &mut word).unwrap();
        u64::from_le_bytes(word) == n << 8 | round
    })
}

/// How calls end of whose large allocations so many succeed; a call that lacks memory is made again
/// with all that there is.
struct Shortage {
    allocations: u64,
    /// Whether `call` had enough, each time.
    enough: Vec<bool>,
}

impl Shortage {
    fn with<T>(
        &mut self,
        checkpoints: &mut Checkpoints,
        mut call: impl FnMut(&mut Checkpoints) -> Result<T, CheckpointError>,
    ) -> T {
        LEFT.store(self.allocations, Ordering::Relaxed);
        let result = call(checkpoints);
        LEFT.store(u64::MAX, Ordering::Relaxed);
        self.enough.push(result.is_ok());
        match result {
            Ok(value) => value,
            Err(CheckpointError::NoMemory { .. }) => call(checkpoints).unwrap(),
            Err(other) => panic!("{other}"),
        }
    }
}

/// What a machine does with so much memory; whether that was enough, each time.
fn run(allocations: u64) -> Vec<bool> {
    let mut shortage = Shortage { allocations, enough: Vec::new() };
    let map = MemoryMap::new();
    let ram: Arc<RamBlock> = RamBlock::anonymous("ram", PAGES * STEP).unwrap();
    map.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let mut checkpoints = Checkpoints::new(&map, Vec::new()).unwrap();
    write(&ram, 1);
    let first = shortage.with(&mut checkpoints, Checkpoints::take);
    write(&ram, 2);
    let take_live = |checkpoints: &mut Checkpoints| checkpoints.take_live(|| Ok(()));
    let (second, _) = shortage.with(&mut checkpoints, take_live);
    write(&ram, 3);
    shortage.with(&mut checkpoints, Checkpoints::reset);
    assert!(holds(&ram, 2), "after a reset");
    write(&ram, 4);
    let third = shortage.with(&mut checkpoints, Checkpoints::take);
    for (checkpoint, round) in [(first, 1), (third, 4), (second, 2)] {
        checkpoints.restore(checkpoint).unwrap();
        assert!(holds(&ram, round), "checkpoint {round}");
    }
    shortage.enough
}

#[test]
fn what_does_not_fit_is_an_error_and_the_machine_goes_on() {
    assert_eq!(run(0)[..2], [false, false]);
    // Each allocation is the first to fail once.
    let enough = (1..).map(run).take(1000).position(|enough| enough == [true; 4]).unwrap();
    println!("{enough} allocations");
    assert!(enough > 10);
}
