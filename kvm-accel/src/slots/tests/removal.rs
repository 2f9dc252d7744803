//! All slots are deleted: nothing that was logged is lost, no block is freed that KVM still maps.

use std::sync::{Arc, Weak};

use memory_region::{LogClaim, MemoryMap};
use ram_block::{DirtyClient, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, PaperSlots, Policy};
use crate::slots::table::{Mode, Slots};
use crate::sys::ioctl::{SlotCalls, SlotRegion};

const MODES: [Mode; 3] =
    [Mode::Bitmap, Mode::ManualProtect { chunk: 64 }, Mode::Rings { with_bitmap: false }];

const PAGES: u64 = 10;

/// The slots of a logged block of `PAGES` pages, of three pages each, and its log.
fn slots(mode: Mode) -> (Paper, PaperSlots, LogClaim) {
    let page = PageSize::host().bytes();
    let block = RamBlock::anonymous("ram", PAGES * page).unwrap();
    let map = MemoryMap::new();
    let (system, ram) = map
        .transaction(|map| {
            let system = map.container("system", 1 << 40)?;
            let ram = map.ram("ram", block)?;
            map.add_subregion(system, 0, ram)?;
            Ok((system, ram))
        })
        .unwrap();
    let mut log = map.claim_log(ram, DirtyClient::VGA).unwrap();
    let kvm = Paper::new(mode, 1);
    let mut slots = Slots::new(100, 3 * page, mode);
    for entries in kvm.mapped() {
        slots.rings.add(entries);
    }
    let follower =
        Arc::new(Follower { kvm: kvm.into(), slots: slots.into(), policy: Policy::Held });
    let space = map.address_space("memory", system).unwrap();
    map.add_listener(&space, follower.clone()).unwrap();
    // The table as it is when the machine is dropped before the map, which follows without slots
    // from here on.
    let kvm = std::mem::replace(&mut *follower.kvm.lock().unwrap(), Paper::new(mode, 0));
    let empty = Slots::new(0, page, mode);
    let slots = std::mem::replace(&mut *follower.slots.lock().unwrap(), empty);
    dirty(&mut log);
    (kvm, slots, log)
}

/// How many dirty pages the client has.
fn dirty(log: &mut LogClaim) -> u64 {
    let all = 0..log.block().len();
    log.snapshot_and_clear(all).unwrap().commit().count()
}

#[test]
fn what_was_logged_is_merged_and_the_block_is_freed() {
    for mode in MODES {
        let (kvm, mut slots, mut log) = slots(mode);
        slots.harvest(&kvm, 0).unwrap();
        dirty(&mut log);
        kvm.store(5 * PageSize::host().bytes(), Some(0)).unwrap();
        slots.remove_all(&kvm);
        assert!(kvm.slots.borrow().is_empty(), "{mode:?}");
        assert!(slots.list().is_empty());
        assert!(dirty(&mut log) >= 1, "{mode:?}");
        let block = gone_with(slots, log);
        assert!(block.upgrade().is_none(), "{mode:?}: the block is kept");
    }
}

/// Drops all references of the test to the block, the map among them.
fn gone_with(slots: PaperSlots, log: LogClaim) -> Weak<RamBlock> {
    drop(slots);
    Arc::downgrade(log.block())
}

#[test]
fn if_the_log_cannot_be_fetched_all_counts_as_written() {
    for mode in MODES {
        let (kvm, mut slots, mut log) = slots(mode);
        kvm.store(5 * PageSize::host().bytes(), Some(0)).unwrap();
        kvm.calls_to_failure.set(Some(0));
        slots.remove_all(&kvm);
        assert!(kvm.slots.borrow().is_empty(), "{mode:?}");
        assert_eq!(dirty(&mut log), PAGES, "{mode:?}");
    }
}

/// A KVM that deletes no slots.
struct Stubborn(Paper);

impl SlotCalls for Stubborn {
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> std::io::Result<()> {
        self.0.get_dirty_log(slot, pages, bitmap)
    }

    fn clear_dirty_log(
        &self,
        slot: u32,
        first: u64,
        count: u32,
        bitmap: &[u64],
    ) -> std::io::Result<()> {
        self.0.clear_dirty_log(slot, first, count, bitmap)
    }

    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.exclude(work)
    }

    fn reset_rings(&self) -> std::io::Result<u64> {
        self.0.reset_rings()
    }

    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> std::io::Result<()> {
        match region.size {
            0 => Err(std::io::ErrorKind::OutOfMemory.into()),
            _ => self.0.set_slot(region, block),
        }
    }
}

#[test]
fn a_block_that_kvm_keeps_is_never_freed() {
    for mode in MODES {
        let (kvm, mut slots, log) = slots(mode);
        let kvm = Stubborn(kvm);
        slots.remove_all(&kvm);
        assert!(!kvm.0.slots.borrow().is_empty());
        assert!(slots.list().is_empty());
        let block = gone_with(slots, log);
        assert!(block.upgrade().is_some(), "{mode:?}: KVM writes to freed memory");
    }
}
