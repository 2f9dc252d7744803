//! Random maps, stores and failing calls against a KVM of paper: whatever fails, the
//! table is what KVM has, and no store is lost.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use memory_region::{ListenerError, MemoryListener, MemoryMap, RegionId, Section};
use proptest::prelude::*;
use ram_block::DirtyClient;

use super::*;

/// A slot of the paper KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PaperSlot {
    region: (u64, u64, u64, u32),
    host: usize,
    dirty: BTreeSet<u64>,
}

/// A KVM that keeps its slots, and fails the call that it is told to.
#[derive(Debug, Default)]
struct Paper {
    slots: RefCell<BTreeMap<u32, PaperSlot>>,
    calls_to_failure: Cell<Option<u32>>,
}

impl Paper {
    fn may_fail(&self) -> io::Result<()> {
        match self.calls_to_failure.get() {
            Some(0) => {
                self.calls_to_failure.set(None);
                Err(io::ErrorKind::OutOfMemory.into())
            }
            left => {
                self.calls_to_failure.set(left.map(|calls| calls - 1));
                Ok(())
            }
        }
    }

    /// A guest stores to a page: true if a slot has it.
    fn store(&self, address: u64, page: u64) -> Option<(usize, u64)> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.values_mut().find(|slot| {
            let (guest, size, ..) = slot.region;
            (guest..guest + size).contains(&address)
        })?;
        let (guest, _, offset, flags) = slot.region;
        if flags & KVM_MEM_READONLY != 0 {
            return None;
        }
        if flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
            slot.dirty.insert((address - guest) / page);
        }
        Some((slot.host, (offset + address - guest) / page))
    }
}

impl SlotCalls for Paper {
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
        self.may_fail()?;
        bitmap.fill(0);
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(&slot).expect("the log of a slot that is not there");
        for page in std::mem::take(&mut slot.dirty) {
            assert!(page < pages);
            bitmap[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
        }
        Ok(())
    }

    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()> {
        self.may_fail()?;
        let SlotRegion { slot, flags, guest, offset, size } = region;
        let mut slots = self.slots.borrow_mut();
        if size == 0 {
            slots.remove(&slot).expect("a slot that is not there is deleted");
            return Ok(());
        }
        let new = PaperSlot {
            region: (guest, size, offset, flags),
            host: block.host_address() as usize,
            dirty: BTreeSet::new(),
        };
        let others = slots.iter().filter(|(id, _)| **id != slot);
        for (_, other) in others {
            let (start, len, ..) = other.region;
            assert!(guest + size <= start || start + len <= guest, "slots overlap");
        }
        let dirty = match slots.get(&slot) {
            Some(old) => {
                let same = |slot: &PaperSlot| {
                    (slot.region.0, slot.region.1, slot.region.2, slot.region.3 & KVM_MEM_READONLY)
                };
                assert_eq!(same(old), same(&new), "only flags may change");
                if flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    old.dirty.clone()
                } else {
                    BTreeSet::new()
                }
            }
            None => BTreeSet::new(),
        };
        slots.insert(slot, PaperSlot { dirty, ..new });
        Ok(())
    }
}

/// The slots as a listener of a map.
struct Follower {
    paper: Mutex<Paper>,
    slots: Mutex<Slots>,
}

impl MemoryListener for Follower {
    fn name(&self) -> &str {
        "paper"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        Ok(self.slots.lock().unwrap().commit(&*self.paper.lock().unwrap(), change)?)
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.slots.lock().unwrap().harvest(&*self.paper.lock().unwrap(), section.start())?;
        Ok(())
    }
}

impl Follower {
    /// The table and KVM say the same.
    fn check(&self) {
        let slots = self.slots.lock().unwrap();
        let table: BTreeMap<u32, _> = slots
            .used
            .values()
            .map(|slot| {
                let log = if slot.logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
                let readonly = if slot.readonly { KVM_MEM_READONLY } else { 0 };
                let region = (slot.guest, slot.size, slot.offset, log | readonly);
                (slot.id, (region, slot.block.host_address() as usize))
            })
            .collect();
        let paper = self.paper.lock().unwrap();
        let paper: BTreeMap<u32, _> =
            paper.slots.borrow().iter().map(|(id, slot)| (*id, (slot.region, slot.host))).collect();
        assert_eq!(table, paper);
        assert!(table.len() <= LIMIT);
        assert!(slots.free.iter().all(|id| !table.contains_key(id) && *id < slots.fresh));
        assert_eq!(table.len() + slots.free.len(), usize::try_from(slots.fresh).unwrap());
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Shows or hides overlays and switches VGA's log, all in one commit.
    Commit {
        overlays: [bool; 3],
        log: bool,
        fail: Option<u32>,
    },
    Store {
        page: u64,
    },
    Sync {
        fail: bool,
    },
}

const PAGES: u64 = 64;
/// Fewer slots than all overlays need.
const LIMIT: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<[bool; 3]>(), any::<bool>(), prop::option::of(0..12u32))
            .prop_map(|(overlays, log, fail)| Step::Commit { overlays, log, fail }),
        6 => (0..PAGES).prop_map(|page| Step::Store { page }),
        1 => prop::bool::weighted(0.3).prop_map(|fail| Step::Sync { fail }),
    ]
}

fn overlays(map: &MemoryMap, system: RegionId, page: u64) -> [RegionId; 3] {
    let bytes = u128::from(page);
    map.update(|map| {
        let block = RamBlock::anonymous("overlay", 8 * page)?;
        let whole = map.ram("overlay", block)?;
        let alias = map.alias("alias", whole, 3 * page, 5 * bytes)?;
        let rom = map.rom("rom", RamBlock::anonymous("rom", 4 * page)?)?;
        map.place_overlapping(system, 10 * page, whole, 1)?;
        map.place_overlapping(system, 30 * page, alias, 2)?;
        map.place_overlapping(system, 33 * page, rom, 3)?;
        map.set_enabled(alias, false)?;
        Ok([whole, alias, rom])
    })
    .unwrap()
}

proptest! {
    #[test]
    fn whatever_fails_the_table_is_what_kvm_has_and_no_store_is_lost(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let page = PageSize::host().bytes();
        let ram = RamBlock::anonymous("ram", PAGES * page).unwrap();
        let map = MemoryMap::new();
        let (system, region) = map.update(|map| {
            let system = map.container("system", 1 << 40)?;
            let region = map.ram("ram", ram.clone())?;
            map.place_overlapping(system, 0, region, 0)?;
            map.set_log(region, DirtyClient::MIGRATION, true)?;
            Ok((system, region))
        }).unwrap();
        let overlays = overlays(&map, system, page);
        let space = map.address_space("memory", system).unwrap();
        let follower = Arc::new(Follower { paper: Mutex::default(), slots: Mutex::new(Slots::new(LIMIT)) });
        map.add_listener(&space, follower.clone()).unwrap();
        let mut stored = BTreeSet::new();
        // A switch-off that is refused leaves VGA on, with nothing lost.
        let mut stored_for_vga = BTreeSet::new();
        for step in steps {
            match step {
                Step::Commit { overlays: shown, log, fail } => {
                    let was_on = ram.dirty().enabled().contains(DirtyClient::VGA);
                    follower.paper.lock().unwrap().calls_to_failure.set(fail);
                    let result = map.update(|map| {
                        for (overlay, shown) in overlays.iter().zip(shown) {
                            map.set_enabled(*overlay, shown)?;
                        }
                        map.set_log(region, DirtyClient::VGA, log)
                    });
                    follower.paper.lock().unwrap().calls_to_failure.set(None);
                    let is_on = ram.dirty().enabled().contains(DirtyClient::VGA);
                    prop_assert_eq!(is_on, if result.is_ok() { log } else { was_on });
                    if !(was_on && is_on) {
                        stored_for_vga.clear();
                    }
                }
                Step::Store { page: number } => {
                    let host = ram.host_address() as usize;
                    let found = follower.paper.lock().unwrap().store(number * page, page);
                    if let Some((_, at)) = found.filter(|(block, _)| *block == host) {
                        stored.insert(at);
                        stored_for_vga.insert(at);
                    }
                }
                Step::Sync { fail } => {
                    follower.paper.lock().unwrap().calls_to_failure.set(fail.then_some(0));
                    let result = map.sync_dirty_log(region);
                    follower.paper.lock().unwrap().calls_to_failure.set(None);
                    prop_assert_eq!(result.is_err(), fail);
                }
            }
            follower.check();
        }
        map.sync_dirty_log(region).unwrap();
        for page in stored {
            prop_assert!(ram.dirty().is_dirty(DirtyClient::MIGRATION, page), "page {} is lost", page);
        }
        if ram.dirty().enabled().contains(DirtyClient::VGA) {
            for page in stored_for_vga {
                prop_assert!(ram.dirty().is_dirty(DirtyClient::VGA, page), "page {} is lost for VGA", page);
            }
        }
    }
}
