//! When blocks and devices that leave the map are dropped, beside threads that access them.
#![cfg(not(target_family = "wasm"))] // has no threads

#[path = "common/deadline.rs"]
mod deadline;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use memory_region::{AddressSpace, FlatView, Iommu, MemoryMap, MmioDevice, RegionId, Translation};
use proptest::prelude::*;
use ram_block::RamBlock;

const DEVICE: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;

struct Bus {
    map: Arc<MemoryMap>,
    root: RegionId,
    bank: RegionId,
    space: Arc<AddressSpace>,
}

/// RAM at 0, and a bank of it below [`DEVICE`].
fn bus() -> Bus {
    let map = MemoryMap::new();
    let (root, bank) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let ram = map.ram("ram", RamBlock::anonymous("ram", 0x2_0000)?)?;
            map.add_subregion(root, 0, ram)?;
            let bank = map.alias("bank", ram, 0, PAGE.into())?;
            map.add_subregion(root, 0x8_0000, bank)?;
            Ok((root, bank))
        })
        .unwrap();
    let space = map.address_space("space", root).unwrap();
    Bus { map, root, bank, space }
}

impl Bus {
    fn add(&self, device: Arc<dyn MmioDevice>) -> RegionId {
        let add = self.map.transaction(|map| {
            let device = map.mmio("device", PAGE.into(), device)?;
            map.add_subregion(self.root, DEVICE, device)?;
            Ok(device)
        });
        add.unwrap()
    }

    fn remove(&self, region: RegionId) {
        let remove = self.map.transaction(|map| {
            map.del_subregion(region)?;
            map.remove(region)
        });
        remove.unwrap();
    }

    fn view(&self) -> Weak<FlatView> {
        Arc::downgrade(&self.space.view())
    }
}

fn read(space: &AddressSpace, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    space.read(address, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// A device that notes its end, which no access must see.
struct Noted {
    is_dropped: Arc<AtomicBool>,
    accesses: Arc<AtomicU64>,
}

impl MmioDevice for Noted {
    fn read(&self, offset: u64, _: usize) -> u64 {
        let turns = if offset == 0 { 40 } else { 0 };
        for _ in 0..turns {
            assert!(!self.is_dropped.load(Ordering::Relaxed), "an access after the drop");
            std::hint::spin_loop();
        }
        self.accesses.fetch_add(1, Ordering::Relaxed);
        u64::from(self.is_dropped.load(Ordering::Relaxed))
    }

    fn write(&self, offset: u64, size: usize, _: u64) {
        self.read(offset, size);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        assert!(!self.is_dropped.swap(true, Ordering::SeqCst), "dropped twice");
    }
}

/// Threads that access a device, RAM and a bank, while the device comes and goes, and the bank is
/// switched: it is dropped soon, and not accessed after that.
#[test]
fn a_device_that_leaves_is_dropped_soon_and_not_accessed_after_that() {
    let (bus, stop, accesses) = (bus(), AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    thread::scope(|scope| {
        for reader in 0..3 {
            let (space, stop) = (&bus.space, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(matches!(read(space, DEVICE + 8 * reader), None | Some(0)));
                    let _ = space.write(DEVICE + 8 * reader, &[0; 8]);
                    assert!(read(space, 8 * reader).is_some() && read(space, 0x8_0000).is_some());
                }
            });
        }
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(2) {
            let is_dropped = Arc::new(AtomicBool::new(false));
            let device = Noted { is_dropped: is_dropped.clone(), accesses: accesses.clone() };
            let region = bus.add(Arc::new(device));
            for bank in 0..count % 40 {
                bus.map.set_alias_offset(bus.bank, bank % 2 * PAGE).unwrap();
            }
            if count % 5 == 0 {
                thread::yield_now();
            }
            bus.remove(region);
            deadline::wait_until("the drop", || is_dropped.load(Ordering::Acquire));
            count += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(accesses.load(Ordering::Relaxed) > 0);
}

/// Without other threads: by the commit itself, whatever was switched or added before.
#[test]
fn the_commit_drops_what_leaves() {
    let bus = bus();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let device = Noted { is_dropped: is_dropped.clone(), accesses: Arc::default() };
    let region = bus.add(Arc::new(device));
    let mut views = vec![bus.view()];
    for bank in [1, 0, 1] {
        bus.map.set_alias_offset(bus.bank, bank * PAGE).unwrap();
        views.push(bus.view());
    }
    let block = RamBlock::anonymous("other", 0x2_0000).unwrap();
    let weak = Arc::downgrade(&block);
    let other = bus.map.transaction(|map| {
        let other = map.ram("other", block)?;
        map.add_subregion(bus.root, 0x20_0000, other)?;
        Ok(other)
    });
    let (other, block) = (other.unwrap(), weak);
    assert_eq!(read(&bus.space, DEVICE), Some(0));
    assert!(views.iter().all(|view| view.upgrade().is_some()), "a barrier that nothing needs");
    bus.remove(region);
    assert!(is_dropped.load(Ordering::Relaxed));
    assert!(views.iter().all(|view| view.upgrade().is_none()));
    assert!(block.upgrade().is_some());
    bus.remove(other);
    assert!(block.upgrade().is_none());
    // With its space.
    let view = bus.view();
    bus.map.remove_address_space(&bus.space).unwrap();
    assert!(view.upgrade().is_none());
}

/// Bank switches keep the memory of some views, not of all.
#[test]
fn views_that_are_kept_are_few() {
    let bus = bus();
    let views: Vec<_> = (0..100)
        .map(|bank| {
            bus.map.set_alias_offset(bus.bank, bank % 2 * PAGE).unwrap();
            bus.view()
        })
        .collect();
    let kept = views.iter().filter(|view| view.upgrade().is_some()).count();
    assert!((1..=33).contains(&kept), "{kept} views");
}

/// What asks each view for the files of its RAM, as vhost does, opens a descriptor for each region:
/// views that are kept keep none.
#[cfg(all(target_os = "linux", feature = "vm-memory"))]
#[test]
fn views_that_are_kept_have_no_files_open() {
    use ram_block::vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    let map = MemoryMap::new();
    let block = RamBlock::memfd("ram", 0x20_0000).unwrap();
    let (root, bank) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let ram = map.ram("ram", block)?;
            map.add_subregion(root, 0, ram)?;
            let bank = map.alias("bank", ram, 0, PAGE.into())?;
            map.add_subregion(root, 1 << 30, bank)?;
            Ok((root, bank))
        })
        .unwrap();
    let space = map.address_space("space", root).unwrap();
    // Memory in a file, which other tests do not have.
    let files = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        let names = all.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        names.filter(|name| name.to_string_lossy().contains("ram-block")).count()
    };
    let before = files();
    assert!(before > 0);
    for number in 0..20 {
        let move_bank = map.set_alias_offset(bank, number % 2 * PAGE);
        move_bank.unwrap();
        let view = space.view();
        assert!(view.ram().iter().all(|region| region.file_offset().is_some()));
        assert_eq!(files(), before + 2, "after {number} switches");
        // By a commit that renders the map, too.
        let log = map.claim_global_log("log").unwrap();
        drop(log);
    }
}

/// A device or an IOMMU in one of several spaces, which have nothing in common.
#[test]
fn what_leaves_one_of_many_spaces_is_dropped_at_once() {
    let map = MemoryMap::new();
    let roots: Vec<_> = (0..3)
        .map(|number| {
            let add = map.transaction(|map| {
                let root = map.container(&format!("root {number}"), 1 << 32)?;
                let ram =
                    map.ram("ram", RamBlock::anonymous(&format!("ram {number}"), PAGE).unwrap())?;
                map.add_subregion(root, 0, ram)?;
                Ok(root)
            });
            add.unwrap()
        })
        .collect();
    let spaces = roots.iter().map(|root| map.address_space("space", *root).unwrap());
    let spaces: Vec<_> = spaces.collect();
    for (round, &root) in roots.iter().chain(&roots).enumerate() {
        let is_dropped = Arc::new(AtomicBool::new(false));
        let noted = Noted { is_dropped: is_dropped.clone(), accesses: Arc::default() };
        let add = map.transaction(|map| {
            let region = match round % 2 {
                0 => map.mmio("device", PAGE.into(), Arc::new(noted))?,
                _ => map.iommu("iommu", PAGE.into(), Arc::new(Nowhere(noted)))?,
            };
            map.add_subregion(root, DEVICE, region)?;
            Ok(region)
        });
        let region = add.unwrap();
        let views: Vec<_> = spaces.iter().map(|space| Arc::downgrade(&space.view())).collect();
        let remove = map.transaction(|map| {
            map.del_subregion(region)?;
            map.remove(region)
        });
        remove.unwrap();
        assert!(is_dropped.load(Ordering::Relaxed), "in round {round}");
        assert!(views.iter().all(|view| view.upgrade().is_none()), "in round {round}");
    }
}

/// An IOMMU that leads nowhere.
struct Nowhere(#[expect(dead_code, reason = "dropped with it")] Noted);

impl Iommu for Nowhere {
    fn translate(&self, _: u64, _: bool) -> Translation {
        Translation::nowhere(PAGE)
    }
}

/// Views of many sections take much memory: fewer of them are kept.
#[test]
fn large_views_that_are_kept_are_fewer() {
    let bus = bus();
    let add = bus.map.transaction(|map| {
        for number in 0..2000 {
            let trap = map.trap("trap", 8, number)?;
            map.add_subregion(bus.root, 0x20_0000 + 16 * number, trap)?;
        }
        Ok(())
    });
    add.unwrap();
    let views: Vec<_> = (0..20)
        .map(|bank| {
            bus.map.set_alias_offset(bus.bank, bank % 2 * PAGE).unwrap();
            bus.view()
        })
        .collect();
    let kept = views.iter().filter(|view| view.upgrade().is_some()).count();
    assert!((1..=3).contains(&kept), "{kept} views");
}

/// A device whose handler removes it, from within another access of its thread.
struct Leaves {
    bus: Arc<Bus>,
    region: OnceLock<RegionId>,
    is_dropped: Arc<AtomicBool>,
}

impl MmioDevice for Leaves {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.bus.remove(*self.region.get().unwrap());
        let memory = read(&self.bus.space, 0);
        u64::from(memory.is_none() || self.is_dropped.load(Ordering::Relaxed))
    }

    fn write(&self, _: u64, _: usize, _: u64) {}
}

impl Drop for Leaves {
    fn drop(&mut self) {
        // May use the map.
        self.bus.map.set_alias_offset(self.bus.bank, PAGE).unwrap();
        assert!(read(&self.bus.space, DEVICE).is_none());
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_device_that_removes_itself_is_dropped_as_its_access_ends() {
    let (bus, is_dropped) = (Arc::new(bus()), Arc::new(AtomicBool::new(false)));
    let (region, noted) = (OnceLock::new(), is_dropped.clone());
    let device = Arc::new(Leaves { bus: bus.clone(), region, is_dropped: noted });
    device.region.set(bus.add(device.clone())).unwrap();
    drop(device);
    assert_eq!(read(&bus.space, DEVICE), Some(0));
    assert!(is_dropped.load(Ordering::Relaxed));
}

/// A handler that panics leaves the view that it was called through.
#[test]
fn a_device_that_panics_is_dropped_as_it_leaves() {
    struct Panics(Arc<AtomicBool>);
    impl MmioDevice for Panics {
        fn read(&self, _: u64, _: usize) -> u64 {
            panic!("in a handler")
        }

        fn write(&self, _: u64, _: usize, _: u64) {}
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (bus, is_dropped) = (bus(), Arc::new(AtomicBool::new(false)));
    let region = bus.add(Arc::new(Panics(is_dropped.clone())));
    thread::scope(|scope| {
        assert!(scope.spawn(|| read(&bus.space, DEVICE)).join().is_err());
    });
    assert!(!is_dropped.load(Ordering::Relaxed));
    bus.remove(region);
    assert!(is_dropped.load(Ordering::Relaxed));
}

/// A device with a note of its end, or memory, in one of a few places.
#[derive(Default)]
struct Placed {
    region: Option<RegionId>,
    is_dropped: Option<Arc<AtomicBool>>,
    block: Weak<RamBlock>,
}

impl Placed {
    fn is_gone(&self) -> bool {
        let is_dropped = self.is_dropped.as_ref();
        is_dropped.is_none_or(|flag| flag.load(Ordering::Relaxed)) && self.block.upgrade().is_none()
    }

    /// Puts a device or a block there, of a priority of its own.
    fn put(&mut self, bus: &Bus, number: i32, address: u64) {
        let block = RamBlock::anonymous(&format!("block {number}"), 0x1_0000).unwrap();
        let (weak, is_dropped) = (Arc::downgrade(&block), Arc::new(AtomicBool::new(false)));
        let device = Noted { is_dropped: is_dropped.clone(), accesses: Arc::default() };
        let put = bus.map.transaction(|map| {
            let region = match number % 3 {
                0 => map.ram("ram", block)?,
                1 => map.mmio("device", PAGE.into(), Arc::new(device))?,
                _ => map.rom_device("flash", block, Arc::new(device))?,
            };
            map.add_subregion_overlap(bus.root, address, region, number)?;
            Ok(region)
        });
        let is_dropped = (number % 3 > 0).then_some(is_dropped);
        *self = Self { region: Some(put.unwrap()), is_dropped, block: weak };
    }
}

proptest! {
    /// Whatever is hidden, moved, switched and disabled before: what leaves the map is dropped by
    /// the commit that removes it.
    #[test]
    fn what_leaves_is_dropped_at_once(
        steps in prop::collection::vec((0..9_i32, 0..5, 0..6_u64), 1..60),
    ) {
        let bus = bus();
        let mut places: Vec<Placed> = (0..9).map(|_| Placed::default()).collect();
        for (number, step, at) in steps {
            let (place, address) = (&mut places[usize::try_from(number).unwrap()], at * 0x8000);
            match (place.region, step) {
                (None, _) => place.put(&bus, number, address),
                (Some(region), 0 | 1) => {
                    bus.remove(region);
                    prop_assert!(place.is_gone(), "{} is still there", number);
                    place.region = None;
                }
                (Some(region), 2) => {
                    bus.map.transaction(|map| map.set_address(region, address)).unwrap();
                }
                (Some(region), 3) => {
                    bus.map.transaction(|map| map.set_enabled(region, at % 2 == 0)).unwrap();
                }
                _ => bus.map.set_alias_offset(bus.bank, at * PAGE).unwrap(),
            }
        }
    }
}
