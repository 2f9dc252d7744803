//! Accesses, transactions, listeners and the dirty log, through the public API.

#[path = "common/deadline.rs"]
mod deadline;

use std::sync::{Arc, Mutex};

use memory_region::{
    AccessError, AddressSpace, ListenerError, LogClaim, MapError, MemoryListener, MemoryMap,
    MmioDevice, RegionId, Section, Transaction, ViewChange,
};
use ram_block::{ClientSet, DirtyClient, DirtySnapshot, RamBlock};

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

fn block(id: &str) -> Arc<RamBlock> {
    RamBlock::anonymous(id, 1 << 20).unwrap()
}

/// Notes its accesses and answers with a pattern.
#[derive(Default)]
struct Recorder(Mutex<Vec<(char, u64, usize, u64)>>);

impl MmioDevice for Recorder {
    fn read(&self, offset: u64, size: usize) -> u64 {
        self.0.lock().unwrap().push(('r', offset, size, 0));
        0x8877_6655_4433_2211
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        self.0.lock().unwrap().push(('w', offset, size, value));
    }
}

#[test]
fn an_access_is_split_where_the_sections_are() {
    let map = MemoryMap::new();
    let device = Arc::new(Recorder::default());
    let (ram, rom) = (block("ram"), block("rom"));
    ram.write((1 << 20) - 2, &[1, 2]).unwrap();
    let root = map
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let ram = map.ram("ram", ram.clone())?;
            let device = map.mmio("device", 4, device.clone())?;
            let rom = map.rom("rom", rom.clone())?;
            map.add_subregion(root, 0, ram)?;
            map.add_subregion(root, 1 << 20, device)?;
            map.add_subregion(root, 2 << 20, rom)?;
            Ok(root)
        })
        .unwrap();
    let space = map.address_space("memory", root).unwrap();

    let mut data = [0; 10];
    let error = space.read((1 << 20) - 2, &mut data).unwrap_err();
    assert_eq!(data, [1, 2, 0x11, 0x22, 0x33, 0x44, 0xff, 0xff, 0xff, 0xff]);
    assert!(
        matches!(error, AccessError::Unassigned { unassigned: 0x10_0004, len: 10, .. }),
        "{error}"
    );

    space.write((1 << 20) + 1, &[7, 8]).unwrap();
    assert_eq!(*device.0.lock().unwrap(), [('r', 0, 4, 0), ('w', 1, 2, 0x0807)]);

    let error = space.write(2 << 20, &[1]).unwrap_err();
    assert!(matches!(&error, AccessError::ReadOnly { name, .. } if name == "rom"), "{error}");
    let mut byte = [9];
    space.read(2 << 20, &mut byte).unwrap();
    assert_eq!(byte, [0]);

    let error = space.read(u64::MAX, &mut [0; 2]).unwrap_err();
    assert!(matches!(error, AccessError::Unassigned { unassigned: u64::MAX, .. }), "{error}");
    space.read(5, &mut []).unwrap();
}

#[test]
fn an_access_past_the_last_byte_does_not_wrap() {
    let map = MemoryMap::new();
    let ram = block("ram");
    let root = map
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let ram = map.ram("ram", ram)?;
            map.add_subregion(root, u64::MAX - (1 << 20) + 1, ram)?;
            Ok(root)
        })
        .unwrap();
    let space = map.address_space("memory", root).unwrap();
    let mut data = [3; 4];
    let error = space.read(u64::MAX - 1, &mut data).unwrap_err();
    assert!(matches!(error, AccessError::PastEnd { len: 4, .. }), "{error}");
    assert_eq!(data, [0, 0, 0xff, 0xff]);
}

#[test]
fn a_device_may_change_the_map_from_its_handler() {
    struct Switch(Arc<MemoryMap>, RegionId);
    impl MmioDevice for Switch {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, _: u64, _: usize, value: u64) {
            self.0.transaction(|map| map.set_enabled(self.1, value != 0)).unwrap();
        }
    }
    let map = MemoryMap::new();
    let (root, window) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let window = map.ram("window", block("window"))?;
            map.add_subregion(root, 1 << 20, window)?;
            Ok((root, window))
        })
        .unwrap();
    let device = Arc::new(Switch(map.clone(), window));
    map.transaction(|map| {
        let device = map.mmio("switch", 4, device)?;
        map.add_subregion(root, 0, device)
    })
    .unwrap();
    let space = map.address_space("memory", root).unwrap();
    space.read(1 << 20, &mut [0]).unwrap();
    space.write(0, &[0; 4]).unwrap();
    assert!(space.read(1 << 20, &mut [0]).is_err());
    space.write(0, &[1, 0, 0, 0]).unwrap();
    space.read(1 << 20, &mut [0]).unwrap();
}

#[test]
fn impossible_maps_are_refused_by_name() {
    let map = MemoryMap::new();
    let says = |result: Result<(), MapError>| result.unwrap_err().to_string();
    let (small, ram) = map
        .transaction(|map| Ok((map.container("small", 3 << 20)?, map.ram("ram", block("ram"))?)))
        .unwrap();
    map.transaction(|map| map.add_subregion(small, 0x1000, ram)).unwrap();

    assert_eq!(
        says(map.transaction(|map| {
            let other = map.ram("other", block("other"))?;
            map.add_subregion(small, 0x1000, other)
        })),
        "\"other\" at 0x1000 with 0x100000 bytes overlaps \"ram\" at 0x1000 with 0x100000 bytes"
    );
    assert_eq!(
        says(map.transaction(|map| {
            let other = map.ram("other", block("other"))?;
            map.add_subregion_overlap(small, (2 << 20) + 1, other, 9)
        })),
        "\"other\" of 0x100000 bytes at 0x200001 reaches past the end of \"small\" of 0x300000 \
            bytes"
    );
    assert_eq!(
        says(map.transaction(|map| map.container("none", 0).map(drop))),
        "Region \"none\" has a size of 0x0 bytes, 1 to 2^64 are possible"
    );
    assert!(matches!(
        map.transaction(|map| map.container("more", (1 << 64) + 1)),
        Err(MapError::Size { .. })
    ));
    assert!(matches!(
        map.transaction(|map| map.alias("a", ram, 1, 1 << 20)),
        Err(MapError::AliasOutside { offset: 1, .. })
    ));
    assert!(matches!(
        map.transaction(|map| map.add_subregion(ram, 0, small)),
        Err(MapError::NotAContainer { .. })
    ));
    assert!(matches!(
        map.transaction(|map| {
            let alias = map.alias("loop", small, 0, 0x1000)?;
            map.add_subregion_overlap(small, 0, alias, 1)
        }),
        Err(MapError::Cycle { .. })
    ));
    assert!(matches!(
        map.transaction(|map| map.add_subregion(small, 0, small)),
        Err(MapError::Cycle { .. })
    ));
    assert!(matches!(
        map.transaction(|map| {
            let other = map.container("other", 4 << 20)?;
            map.add_subregion(other, 0, ram)
        }),
        Err(MapError::AlreadyPlaced { .. })
    ));
    assert!(matches!(
        map.transaction(|map| map.del_subregion(small)),
        Err(MapError::NotPlaced { .. })
    ));
    assert!(matches!(map.transaction(|map| map.remove(ram)), Err(MapError::InUse { .. })));
    assert!(matches!(
        map.transaction(|map| map.ram("again", block("ram"))),
        Err(MapError::DuplicateBlock { .. })
    ));
    assert!(matches!(map.claim_log(small, VGA), Err(MapError::NotRam { .. })));
    let stranger = map.transaction(|map| map.container("gone", 1)).unwrap();
    map.transaction(|map| map.remove(stranger)).unwrap();
    assert!(matches!(map.address_space("s", stranger), Err(MapError::UnknownRegion { .. })));
    let foreign = MemoryMap::new().address_space("foreign", small);
    assert!(matches!(foreign, Err(MapError::UnknownRegion { .. })));
}

/// A listener that keeps a log, has room for so many sections, and reports pages as
/// dirty when it is asked.
struct Slots {
    name: &'static str,
    room: usize,
    state: Mutex<(usize, Vec<String>)>,
    dirty: Mutex<Vec<u64>>,
}

impl Slots {
    fn new(name: &'static str, room: usize) -> Arc<Self> {
        Arc::new(Self { name, room, state: Mutex::default(), dirty: Mutex::default() })
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().1)
    }
}

impl MemoryListener for Slots {
    fn name(&self) -> &str {
        self.name
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let mut state = self.state.lock().unwrap();
        let used = state.0 - change.removed.len() + change.added.len();
        if used > self.room {
            return Err(format!("{used} sections for {} slots", self.room).into());
        }
        state.0 = used;
        state.1.extend(change.removed.iter().map(|s| format!("-{}@{:#x}", s.name(), s.start())));
        state.1.extend(change.added.iter().map(|s| format!("+{}@{:#x}", s.name(), s.start())));
        state.1.extend(
            change
                .log_changed
                .iter()
                .map(|c| format!("{} {}>{}", c.section.name(), c.old, c.section.log())),
        );
        Ok(())
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        let block = section.ram().unwrap();
        for page in self.dirty.lock().unwrap().drain(..) {
            block.dirty().merge(page, 1, &[1])?;
        }
        Ok(())
    }
}

/// A map with one RAM block at address 0 of its one address space.
fn map_with_ram() -> (Arc<MemoryMap>, Arc<RamBlock>, RegionId, RegionId, Arc<AddressSpace>) {
    let map = MemoryMap::new();
    let ram = block("ram");
    let (root, region) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(root, 0, region)?;
            Ok((root, region))
        })
        .unwrap();
    let space = map.address_space("memory", root).unwrap();
    (map, ram, root, region, space)
}

#[test]
fn a_refused_commit_leaves_everything_as_it_was() {
    let (map, ram, root, _, space) = map_with_ram();
    let (roomy, tight) = (Slots::new("roomy", 100), Slots::new("tight", 2));
    map.add_listener(&space, roomy.clone()).unwrap();
    map.add_listener(&space, tight.clone()).unwrap();
    assert_eq!(roomy.log(), ["+ram@0x0"]);
    assert_eq!(tight.log(), ["+ram@0x0"]);

    // A hole in the middle makes three sections of one.
    let refused = map.transaction(|map| {
        let hole = map.mmio("hole", 0x1000, Arc::new(Recorder::default()))?;
        map.add_subregion_overlap(root, 0x8000, hole, 1)
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused.to_string(), "Listener \"tight\" refuses the new map of \"memory\"");
    let reason = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(reason, "3 sections for 2 slots");
    assert_eq!(
        roomy.log(),
        [
            "-ram@0x0",
            "+ram@0x0",
            "+hole@0x8000",
            "+ram@0x9000",
            "-ram@0x0",
            "-hole@0x8000",
            "-ram@0x9000",
            "+ram@0x0"
        ]
    );
    assert_eq!(space.view().sections().len(), 1);

    // Nor does RAM that was to join a log of all RAM log.
    let log = map.claim_global_log(MIGRATION).unwrap();
    let joins = block("joins");
    let refused = map.transaction(|map| {
        let joins = map.ram("joins", joins.clone())?;
        map.add_subregion(root, 1 << 20, joins)?;
        let hole = map.mmio("hole", 0x1000, Arc::new(Recorder::default()))?;
        map.add_subregion_overlap(root, 0x8000, hole, 1)
    });
    assert!(matches!(refused, Err(MapError::Refused { .. })));
    assert_eq!(joins.dirty().enabled(), ClientSet::EMPTY);
    assert_eq!(ram.dirty().enabled(), ClientSet::EMPTY.with(MIGRATION));
    drop(log);
    roomy.log();
    tight.log();

    // The region that the refused transaction made is not there either.
    map.transaction(|map| {
        let other = map.ram("other", block("other"))?;
        map.add_subregion(root, 1 << 20, other)
    })
    .unwrap();
    assert_eq!(tight.log(), ["+other@0x100000"]);
    let listener: Arc<dyn MemoryListener> = tight.clone();
    assert!(map.remove_listener(&space, &listener).unwrap());
    assert_eq!(tight.log(), ["-ram@0x0", "-other@0x100000"]);
    assert!(!map.remove_listener(&space, &listener).unwrap());
}

/// A map with a log of a region that is placed nowhere, whose block is shown all the same. As the
/// region goes, the log stops; `edit` is refused together with that.
fn refused_with_the_end_of_a_log(
    edit: impl FnOnce(&mut Transaction<'_>, RegionId) -> Result<(), MapError>,
) -> (Arc<RamBlock>, DirtySnapshot) {
    let (map, ram, root, _, space) = map_with_ram();
    let logged = map.transaction(|map| map.ram("logged", ram.clone())).unwrap();
    let mut log = map.claim_log(logged, VGA).unwrap();
    map.add_listener(&space, Slots::new("roomy", 10)).unwrap();
    map.add_listener(&space, Slots::new("tight", 1)).unwrap();
    let refused = map.transaction(|map| {
        map.remove(logged)?;
        edit(map, root)
    });
    assert!(matches!(refused, Err(MapError::Refused { .. })));
    let harvest = log.snapshot_and_clear(0..ram.len()).unwrap().commit();
    (ram, harvest)
}

#[test]
fn a_log_that_a_refusal_switches_on_again_counts_all_as_dirty() {
    let (ram, harvest) = refused_with_the_end_of_a_log(|map, root| {
        let other = map.ram("other", block("other"))?;
        map.add_subregion(root, 1 << 20, other)
    });
    // Between the two changes stores went unlogged.
    assert_eq!(harvest.count(), ram.pages());
}

/// The log goes off together with a change of the geometry: the sections come without
/// it, and what is stored before the refusal is in no log.
#[test]
fn a_refused_change_of_log_and_geometry_counts_all_as_dirty() {
    let (ram, harvest) = refused_with_the_end_of_a_log(|map, root| {
        let hole = map.mmio("hole", 0x1000, Arc::new(Recorder::default()))?;
        map.add_subregion_overlap(root, 0x8000, hole, 1)
    });
    let page = ram.page_size();
    let hole = page.pages_spanned(0x8000, 0x1000);
    assert!((0..ram.pages()).all(|page| harvest.is_dirty(page) || hole.contains(&page)));
}

#[test]
fn a_device_may_use_the_map_when_it_is_dropped() {
    struct Leaves(Arc<MemoryMap>, RegionId, Arc<Mutex<Option<LogClaim>>>);
    impl MmioDevice for Leaves {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    impl Drop for Leaves {
        fn drop(&mut self) {
            *self.2.lock().unwrap() = Some(self.0.claim_log(self.1, VGA).unwrap());
        }
    }
    let (map, ram, root, region, space) = map_with_ram();
    let claimed = Arc::new(Mutex::new(None));
    let device = Arc::new(Leaves(map.clone(), region, claimed.clone()));
    let id = map
        .transaction(|map| {
            let id = map.mmio("leaves", 0x1000, device)?;
            map.add_subregion(root, 1 << 20, id)?;
            Ok(id)
        })
        .unwrap();
    space.read(1 << 20, &mut [0]).unwrap();
    map.transaction(|map| {
        map.del_subregion(id)?;
        map.remove(id)
    })
    .unwrap();
    assert!(ram.dirty().enabled().contains(VGA), "the device is still there");

    // The same with a transaction that fails.
    drop(claimed.lock().unwrap().take());
    let device = Arc::new(Leaves(map.clone(), region, claimed.clone()));
    let refused = map.transaction(|map| {
        let id = map.mmio("leaves", 0x1000, device)?;
        map.add_subregion(root, 0, id)
    });
    assert!(matches!(refused, Err(MapError::Overlap { .. })));
    assert!(ram.dirty().enabled().contains(VGA));
}

#[test]
fn ids_are_not_used_again_and_spaces_can_go() {
    let (map, _, root, _, space) = map_with_ram();
    let mut lost = None;
    let refused = map.transaction(|map| {
        lost = Some(map.container("lost", 0x1000)?);
        map.container("none", 0)
    });
    assert!(refused.is_err());
    let kept = map.transaction(|map| map.container("kept", 0x1000)).unwrap();
    assert_ne!(lost, Some(kept));
    let (other, ..) = map_with_ram();
    assert!(matches!(other.claim_log(root, VGA), Err(MapError::UnknownRegion { .. })));
    assert!(matches!(other.remove_address_space(&space), Err(MapError::UnknownSpace { .. })));

    let slots = Slots::new("slots", 9);
    map.add_listener(&space, slots.clone()).unwrap();
    assert!(matches!(map.remove_address_space(&space), Err(MapError::InUse { .. })));
    let listener: Arc<dyn MemoryListener> = slots;
    map.remove_listener(&space, &listener).unwrap();
    map.remove_address_space(&space).unwrap();
    map.transaction(|map| map.remove(root)).unwrap();
}

#[test]
fn logging_is_told_with_the_clients_before_and_after() {
    let (map, ram, root, region, space) = map_with_ram();
    let slots = Slots::new("slots", 10);
    map.add_listener(&space, slots.clone()).unwrap();
    slots.log();
    let vga = map.claim_log(region, VGA).unwrap();
    let _migration = map.claim_global_log(MIGRATION).unwrap();
    drop(vga);
    assert_eq!(
        slots.log(),
        ["ram none>vga", "ram vga>vga|migration", "ram vga|migration>migration"]
    );
    assert_eq!(ram.dirty().enabled(), ClientSet::EMPTY.with(MIGRATION));

    map.transaction(|map| {
        let late = map.ram("late", block("late"))?;
        map.add_subregion(root, 1 << 20, late)
    })
    .unwrap();
    assert_eq!(slots.log(), ["+late@0x100000"]);
    let late = space.view().section_at(1 << 20).unwrap().clone();
    assert_eq!(late.log(), ClientSet::EMPTY.with(MIGRATION));
    assert!(late.ram().unwrap().dirty().enabled().contains(MIGRATION));
}

#[test]
fn a_snapshot_syncs_first_and_takes_one_clients_pages_of_exactly_the_range() {
    let map = MemoryMap::new();
    let ram = block("ram");
    let page = ram.page_size().bytes();
    let (root, region) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let ram = map.ram("ram", ram.clone())?;
            map.add_subregion(root, 0x3000_0000, ram)?;
            Ok((root, ram))
        })
        .unwrap();
    let mut vga = map.claim_log(region, VGA).unwrap();
    let mut migration = map.claim_global_log(MIGRATION).unwrap();
    let space = map.address_space("memory", root).unwrap();
    let slots = Slots::new("slots", 10);
    map.add_listener(&space, slots.clone()).unwrap();
    slots.dirty.lock().unwrap().extend([1, 2, 5]);
    space.write(0x3000_0000 + 3 * page, &[1]).unwrap();

    let harvest = vga.snapshot_and_clear(2 * page..4 * page + 1).unwrap();
    assert_eq!(harvest.range(), 2..5);
    assert_eq!(harvest.pages().collect::<Vec<_>>(), [2, 3]);
    harvest.commit();
    let rest = vga.snapshot_and_clear(0..1 << 20).unwrap();
    assert_eq!(rest.pages().collect::<Vec<_>>(), [1, 5]);
    drop(rest);
    let all = migration.snapshot_and_clear(&ram, 0..ram.len()).unwrap();
    assert_eq!(all.commit().pages().collect::<Vec<_>>(), [1, 2, 3, 5]);
    let beyond = vga.snapshot_and_clear(0..(1 << 20) + 1);
    assert!(matches!(beyond, Err(MapError::ByteRange { .. })));
}

#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn readers_see_one_whole_view_while_a_writer_commits() {
    struct Tag(u8);
    impl MmioDevice for Tag {
        fn read(&self, _: u64, _: usize) -> u64 {
            u64::from(self.0)
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    // Two devices that swap places: a view that is half old and half new would show
    // one of them twice.
    let map = MemoryMap::new();
    let (root, a, b) = map
        .transaction(|map| {
            let root = map.container("root", 0x100)?;
            let a = map.mmio("a", 1, Arc::new(Tag(1)))?;
            let b = map.mmio("b", 1, Arc::new(Tag(2)))?;
            map.add_subregion(root, 0, a)?;
            map.add_subregion(root, 1, b)?;
            Ok((root, a, b))
        })
        .unwrap();
    let space = map.address_space("memory", root).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut both = [0; 2];
                space.read(0, &mut both).unwrap();
                assert!(both == [1, 2] || both == [2, 1], "{both:?}");
                reads += 1;
            }
            reads
        });
        for round in 0..100_000 {
            map.transaction(|map| {
                map.del_subregion(a)?;
                map.del_subregion(b)?;
                map.add_subregion(root, round & 1 ^ 1, a)?;
                map.add_subregion(root, round & 1, b)
            })
            .unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

/// A commit that is under way keeps no reader waiting, however long it takes.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn readers_go_on_while_a_commit_waits_for_them() {
    struct Waits<'a>(&'a std::sync::atomic::AtomicU64);
    impl MemoryListener for Waits<'static> {
        fn name(&self) -> &str {
            "waits"
        }

        fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
            let count = || self.0.load(std::sync::atomic::Ordering::Acquire);
            let (begin, before) = (std::time::Instant::now(), count());
            while count() < before + 1000 {
                if begin.elapsed() > deadline::seconds(30) {
                    return Err("readers wait for the commit".into());
                }
                std::thread::yield_now();
            }
            Ok(())
        }

        fn sync(&self, _: &Section) -> Result<(), ListenerError> {
            Ok(())
        }
    }
    static READS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let (map, _, _, region, space) = map_with_ram();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = space.read(0, &mut [0; 8]);
                READS.fetch_add(1, std::sync::atomic::Ordering::Release);
            }
        });
        let result = map.add_listener(&space, Arc::new(Waits(&READS))).and_then(|()| {
            (0..10).try_for_each(|round| {
                map.transaction(|map| map.set_enabled(region, round % 2 == 1))
            })
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        result.unwrap();
    });
}
