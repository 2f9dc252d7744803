//! Random maps, stores, harvests and failing calls against a KVM of paper, with logs that
//! clear by themselves and such that are cleared, in slots of any size: whatever fails, the
//! table is what KVM has, and no store is lost to any client.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::{ListenerError, MapError, MemoryListener, MemoryMap, RegionId, Section};
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
    /// Reports leave the log as it is, and logs start with all pages.
    manual: bool,
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
        for page in &slot.dirty {
            assert!(*page < pages);
            bitmap[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
        }
        if !self.manual {
            slot.dirty.clear();
        }
        Ok(())
    }

    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(&slot).expect("the log of a slot that is not there");
        let (pages, count) = (slot.region.1 / PageSize::host().bytes(), u64::from(count));
        assert!(self.manual && first % 64 == 0 && first + count <= pages);
        assert!(count % 64 == 0 || first + count == pages, "{count} of {pages} from {first}");
        let is_named = |page: u64| {
            let n = usize::try_from((page - first) / 64).unwrap();
            bitmap[n] >> ((page - first) % 64) & 1 != 0
        };
        let range = first..first + count;
        slot.dirty.retain(|page| !range.contains(page) || !is_named(*page));
        self.may_fail()
    }

    fn reset_rings(&self) -> io::Result<u64> {
        Ok(0)
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
                let starts = flags & !old.region.3 & KVM_MEM_LOG_DIRTY_PAGES != 0;
                let same = |slot: &PaperSlot| {
                    (slot.region.0, slot.region.1, slot.region.2, slot.region.3 & KVM_MEM_READONLY)
                };
                assert_eq!(same(old), same(&new), "only flags may change");
                if starts && self.manual {
                    (0..size / PageSize::host().bytes()).collect()
                } else if flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    old.dirty.clone()
                } else {
                    BTreeSet::new()
                }
            }
            None if self.manual && flags & KVM_MEM_LOG_DIRTY_PAGES != 0 => {
                (0..size / PageSize::host().bytes()).collect()
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

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        let paper = self.paper.lock().unwrap();
        Ok(self.slots.lock().unwrap().clear(&*paper, section.start(), &bytes)?)
    }
}

impl Follower {
    /// The table and KVM say the same.
    fn check(&self) {
        let slots = self.slots.lock().unwrap();
        let table: BTreeMap<u32, _> = slots
            .used
            .values()
            .flatten()
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
        assert!(table.len() <= LIMIT_OF_SPLIT);
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
    /// A client takes some pages and reads them, after a sync or from what it still has.
    Take {
        vga: bool,
        sync: bool,
        pages: (u64, u64),
        fail: Option<u32>,
    },
}

const CLIENTS: [DirtyClient; 2] = [DirtyClient::VGA, DirtyClient::MIGRATION];
const PAGES: u64 = 300;
/// Fewer slots than all overlays need, if they are not split.
const LIMIT: usize = 5;
/// The same for slots of 100 pages.
const LIMIT_OF_SPLIT: usize = 8;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<[bool; 3]>(), any::<bool>(), prop::option::of(0..12u32))
            .prop_map(|(overlays, log, fail)| Step::Commit { overlays, log, fail }),
        6 => (0..PAGES).prop_map(|page| Step::Store { page }),
        1 => prop::bool::weighted(0.3).prop_map(|fail| Step::Sync { fail }),
        3 => (any::<bool>(), any::<bool>(), (0..PAGES, 1..PAGES), prop::option::weighted(0.2, 0..3u32))
            .prop_map(|(vga, sync, pages, fail)| Step::Take { vga, sync, pages, fail }),
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
        steps in prop::collection::vec(step(), 1..80),
        manual in any::<bool>(),
        split in any::<bool>(),
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
        let (limit, most) = if split { (LIMIT_OF_SPLIT, 100) } else { (LIMIT, 1 << 20) };
        let mode = if manual { Mode::ManualProtect { chunk: 64 } } else { Mode::Bitmap };
        let follower = Arc::new(Follower {
            paper: Mutex::new(Paper { manual, ..Paper::default() }),
            slots: Mutex::new(Slots::new(limit, most * page, mode)),
        });
        // How often each page was stored to, and what each client has read of that.
        let mut memory = vec![0u64; usize::try_from(PAGES).unwrap()];
        let mut copies = [memory.clone(), memory.clone()];
        map.add_listener(&space, follower.clone()).unwrap();
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
                    // A switch-off that is refused leaves VGA on, with nothing lost.
                    if !(was_on && is_on) {
                        copies[0].clone_from(&memory);
                    }
                }
                Step::Store { page: number } => {
                    let host = ram.host_address() as usize;
                    let found = follower.paper.lock().unwrap().store(number * page, page);
                    if let Some((_, at)) = found.filter(|(block, _)| *block == host) {
                        memory[usize::try_from(at).unwrap()] += 1;
                    }
                }
                Step::Sync { fail } => {
                    follower.paper.lock().unwrap().calls_to_failure.set(fail.then_some(0));
                    let result = map.sync_dirty_log(region);
                    follower.paper.lock().unwrap().calls_to_failure.set(None);
                    prop_assert_eq!(result.is_err(), fail);
                }
                Step::Take { vga, sync, pages: (first, count), fail } => {
                    let client = CLIENTS[usize::from(!vga)];
                    let pages = first..(first + count).min(PAGES);
                    follower.paper.lock().unwrap().calls_to_failure.set(fail);
                    let result = (|| {
                        if sync {
                            map.sync_dirty_log(region)?;
                        }
                        let harvest = ram.dirty().snapshot_and_clear(client, pages.clone())?;
                        map.log_clear(&ram, pages.start * page..pages.end * page)?;
                        for page in harvest.commit().pages() {
                            let page = usize::try_from(page).unwrap();
                            copies[usize::from(!vga)][page] = memory[page];
                        }
                        Ok::<(), MapError>(())
                    })();
                    follower.paper.lock().unwrap().calls_to_failure.set(None);
                    let is_on = ram.dirty().enabled().contains(client);
                    prop_assert!(result.is_ok() || fail.is_some() || !is_on, "{:?}", result);
                }
            }
            follower.check();
        }
        map.sync_dirty_log(region).unwrap();
        for (client, copy) in CLIENTS.into_iter().zip(&copies) {
            for (page, (now, read)) in (0..).zip(memory.iter().zip(copy)) {
                let dirty = !ram.dirty().enabled().contains(client) || ram.dirty().is_dirty(client, page);
                prop_assert!(now == read || dirty, "page {} is lost for {}", page, client);
            }
        }
    }
}
