//! Regions that change: where they are, how large, who answers.
#![cfg(all(target_os = "linux", feature = "vm-memory"))]

use std::sync::{Arc, Mutex};

use memory_region::{AccessError, AddressSpace, MapError, MemoryMap, MmioDevice, RegionId};
use ram_block::vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};
use ram_block::{DirtyClient, RamBlock};

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;

fn block(id: &str) -> Arc<RamBlock> {
    RamBlock::anonymous(id, 1 << 20).unwrap()
}

/// Answers with its number, and notes writes.
struct Device(u8, Mutex<Vec<(u64, u64)>>);

impl Device {
    fn new(number: u8) -> Arc<Self> {
        Arc::new(Self(number, Mutex::default()))
    }
}

impl MmioDevice for Device {
    fn read(&self, _: u64, _: usize) -> u64 {
        u64::from(self.0) * 0x0101_0101_0101_0101
    }

    fn write(&self, offset: u64, _: usize, value: u64) {
        self.1.lock().unwrap().push((offset, value));
    }
}

struct Bus {
    map: Arc<MemoryMap>,
    root: RegionId,
    space: Arc<AddressSpace>,
}

impl Bus {
    fn new() -> Self {
        let map = MemoryMap::new();
        let root = map.transaction(|map| map.container("root", 1 << 32)).unwrap();
        let space = map.address_space("space", root).unwrap();
        Self { map, root, space }
    }

    /// What is read at `address`; nothing if nothing answers.
    fn byte(&self, address: u64) -> Option<u8> {
        let mut byte = [0];
        self.space.read(address, &mut byte).ok().map(|()| byte[0])
    }

    fn device(&self, at: u64, number: u8) -> RegionId {
        self.map
            .transaction(|map| {
                let region = map.mmio("device", 0x100, Device::new(number))?;
                map.add_subregion_overlap(self.root, at, region, 0)?;
                Ok(region)
            })
            .unwrap()
    }
}

#[test]
fn regions_move_and_change_places_in_the_order_of_answers() {
    let bus = Bus::new();
    let (one, two) = (bus.device(0, 1), bus.device(0x80, 2));
    assert_eq!([0, 0x90, 0x170].map(|at| bus.byte(at)), [Some(1), Some(2), Some(2)]);
    bus.map.transaction(|map| map.set_priority(one, 1)).unwrap();
    assert_eq!(bus.byte(0x90), Some(1));
    bus.map.transaction(|map| map.set_priority(two, 1)).unwrap();
    assert_eq!(bus.byte(0x90), Some(2), "of equal priority the last one");
    bus.map.transaction(|map| map.set_address(one, 0x80)).unwrap();
    assert_eq!([0, 0x90].map(|at| bus.byte(at)), [None, Some(1)]);
    bus.map.transaction(|map| map.set_address(one, 0xffff_ff00)).unwrap();
    assert_eq!([0x90, 0xffff_ff00].map(|at| bus.byte(at)), [Some(2), Some(1)]);

    let before = bus.space.view();
    let refused = bus.map.transaction(|map| map.set_address(one, 0xffff_ff01));
    assert!(matches!(refused, Err(MapError::OutsideContainer { .. })), "{refused:?}");
    let refused = bus.map.transaction(|map| {
        map.del_subregion(one)?;
        map.add_subregion(bus.root, 0, one)?;
        let other = map.mmio("other", 1, Device::new(3))?;
        map.add_subregion(bus.root, 0x100, other)?;
        // A failed move leaves the region where it was, within a transaction too.
        assert!(matches!(map.set_address(other, 0xff), Err(MapError::Overlap { .. })));
        map.set_address(one, 0)?;
        map.resize(one, 0x101)
    });
    assert!(matches!(refused, Err(MapError::Overlap { .. })), "{refused:?}");
    assert_eq!(format!("{:?}", bus.space.view()), format!("{before:?}"));
    let loose = bus.map.transaction(|map| map.container("loose", 1)).unwrap();
    for refused in [
        bus.map.transaction(|map| map.set_address(loose, 0)),
        bus.map.transaction(|map| map.set_priority(loose, 0)),
    ] {
        assert!(matches!(refused, Err(MapError::NotPlaced { .. })));
    }
}

#[test]
fn sizes_change_as_far_as_everything_fits() {
    let bus = Bus::new();
    let device = bus.device(0, 1);
    bus.map.transaction(|map| map.resize(device, 0x1000)).unwrap();
    assert_eq!(bus.byte(0xfff), Some(1));
    bus.map.transaction(|map| map.resize(device, 0x10)).unwrap();
    assert_eq!([0xf, 0x10].map(|at| bus.byte(at)), [Some(1), None]);

    let (ram, alias) = bus
        .map
        .transaction(|map| {
            let ram = map.ram("ram", block("ram"))?;
            let alias = map.alias("alias", ram, 0x8_0000, 0x4_0000)?;
            map.add_subregion(bus.root, 0x10_0000, alias)?;
            Ok((ram, alias))
        })
        .unwrap();
    let resize = |region, size| bus.map.transaction(|map| map.resize(region, size));
    resize(ram, 0xc_0000).unwrap();
    resize(alias, 0x2_0000).unwrap();
    resize(alias, 0x4_0000).unwrap();
    assert!(matches!(resize(alias, 0x4_0001), Err(MapError::AliasOutside { .. })));
    assert!(matches!(resize(ram, 0xb_ffff), Err(MapError::AliasOutside { .. })));
    assert_eq!(
        resize(ram, 0x10_0001).unwrap_err().to_string(),
        "\"ram\" cannot have 0x100001 bytes, its block has 0x100000"
    );
    assert!(matches!(resize(device, 0), Err(MapError::Size { .. })));
    assert!(matches!(resize(device, (1 << 64) + 1), Err(MapError::Size { .. })));
    assert!(matches!(resize(device, (1 << 32) + 1), Err(MapError::OutsideContainer { .. })));
    assert!(matches!(resize(bus.root, 0x10_0000), Err(MapError::OutsideContainer { .. })));
    resize(bus.root, 1 << 64).unwrap();
}

#[test]
fn a_read_only_window_on_ram_that_is_written_elsewhere() {
    let bus = Bus::new();
    let ram = block("ram");
    let (window, shown) = bus
        .map
        .transaction(|map| {
            let region = map.ram("ram", ram.clone())?;
            let window = map.alias("shadow", region, 0xc_0000, 0x4000)?;
            map.set_readonly(window, true)?;
            map.add_subregion(bus.root, 0, region)?;
            map.add_subregion_overlap(bus.root, 0x8000_0000, window, 1)?;
            Ok((window, region))
        })
        .unwrap();
    let mut log = bus.map.claim_log(shown, MIGRATION).unwrap();
    let at = 0x8000_0010;
    let refused = bus.space.write(at, &[1]).unwrap_err();
    assert!(matches!(&refused, AccessError::ReadOnly { name, .. } if name == "ram"), "{refused}");
    bus.space.write(0xc_0010, &[5]).unwrap();
    assert_eq!(bus.byte(at), Some(5));
    // For vm-memory's users too: what cannot be written is not in the RAM.
    let memory = bus.space.memory();
    memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert!(memory.write_obj(1u8, GuestAddress(at)).is_err());
    assert_eq!(memory.ram().num_regions(), 1);

    bus.map.transaction(|map| map.set_readonly(window, false)).unwrap();
    bus.space.write(at, &[7]).unwrap();
    assert_eq!(bus.byte(0xc_0010), Some(7));
    assert_eq!(bus.space.memory().ram().num_regions(), 2);
    // A read-only container makes all its memory so.
    bus.map.transaction(|map| map.set_readonly(bus.root, true)).unwrap();
    assert!(bus.space.write(0xc_0010, &[1]).is_err());
    bus.map.transaction(|map| map.set_readonly(bus.root, false)).unwrap();
    let harvest = log.snapshot_and_clear(0..1 << 20).unwrap().commit();
    assert_eq!(harvest.pages().collect::<Vec<_>>(), [ram.page_size().page_of(0xc_0010)]);
}

#[test]
fn a_rom_device_is_read_directly_or_asked_and_written_always() {
    let bus = Bus::new();
    let (flash, device) = (block("flash"), Device::new(9));
    flash.write(4, &[0x42]).unwrap();
    let region = bus
        .map
        .transaction(|map| {
            let region = map.rom_device("flash", flash.clone(), device.clone())?;
            map.add_subregion(bus.root, 0x1000, region)?;
            Ok(region)
        })
        .unwrap();
    assert_eq!(bus.byte(0x1004), Some(0x42));
    bus.space.write(0x1004, &[0x90]).unwrap();
    assert_eq!(bus.byte(0x1004), Some(0x42));
    bus.map.transaction(|map| map.set_romd(region, false)).unwrap();
    assert_eq!(bus.byte(0x1004), Some(9));
    bus.space.write(0x1006, &[0xff]).unwrap();
    assert_eq!(*device.1.lock().unwrap(), [(4, 0x90), (6, 0xff)]);
    let view = bus.space.view();
    assert!(view.section_at(0x1004).unwrap().ram().is_none());
    bus.map.transaction(|map| map.set_romd(region, true)).unwrap();
    assert_eq!(bus.byte(0x1004), Some(0x42));
    let view = bus.space.view();
    let section = view.section_at(0x1004).unwrap();
    assert!(section.readonly() && section.ram().is_some() && section.device().is_some());
    // The device's own stores are logged, whoever answers reads.
    let mut log = bus.map.claim_log(region, MIGRATION).unwrap();
    flash.write(0x8000, &[1]).unwrap();
    let harvest = log.snapshot_and_clear(0..1 << 20).unwrap().commit();
    assert_eq!(harvest.count(), 1);
    let refused = bus.map.transaction(|map| map.set_romd(bus.root, true)).unwrap_err();
    assert_eq!(refused.to_string(), "\"root\" is no ROM device");
}

#[test]
fn a_reservation_hides_and_answers_nothing() {
    let bus = Bus::new();
    bus.device(0, 1);
    bus.map
        .transaction(|map| {
            let kernel = map.reservation("apic", 0x10)?;
            map.add_subregion_overlap(bus.root, 0x20, kernel, 1)
        })
        .unwrap();
    assert_eq!([0x1f, 0x20, 0x2f, 0x30].map(|at| bus.byte(at)), [Some(1), None, None, Some(1)]);
    let mut data = [0; 4];
    let error = bus.space.read(0x1e, &mut data).unwrap_err();
    assert!(matches!(error, AccessError::Unassigned { unassigned: 0x20, .. }), "{error}");
    assert_eq!(data, [1, 1, 0xff, 0xff]);
    let error = bus.space.write(0x24, &[0]).unwrap_err();
    assert!(matches!(error, AccessError::Unassigned { unassigned: 0x24, .. }), "{error}");
}

/// A bus master's space is a window on all of memory: it has the same view, not a copy.
#[test]
fn spaces_that_show_the_same_share_their_view() {
    let bus = Bus::new();
    bus.device(0, 1);
    let (master, part) = bus
        .map
        .transaction(|map| {
            let master = map.container("bus master", 1 << 64)?;
            let window = map.alias("window", bus.root, 0, 1 << 32)?;
            map.add_subregion(master, 0, window)?;
            let part = map.alias("part", bus.root, 0, 1 << 31)?;
            Ok((master, part))
        })
        .unwrap();
    let device = bus.map.address_space("device", master).unwrap();
    let half = bus.map.address_space("half", part).unwrap();
    let shared = |other: &AddressSpace| Arc::ptr_eq(&bus.space.view(), &other.view());
    assert!(shared(&device) && !shared(&half));
    bus.device(0x1000, 2);
    assert!(shared(&device) && !shared(&half));
    assert_eq!(device.view().sections().len(), 2);
    bus.map.transaction(|map| map.set_readonly(master, true)).unwrap();
    assert!(!shared(&device));
    bus.map.transaction(|map| map.set_readonly(master, false)).unwrap();
    bus.map.transaction(|map| map.set_enabled(master, false)).unwrap();
    assert!(device.view().sections().is_empty());
    bus.map.transaction(|map| map.set_enabled(master, true)).unwrap();
    assert!(shared(&device));
}

/// Accesses of vm-memory's users across sections, at holes, and at the end of all.
#[test]
fn vm_memory_sees_the_ram_of_the_view() {
    let bus = Bus::new();
    let (low, high) = (block("low"), RamBlock::memfd("high", 1 << 20).unwrap());
    bus.map
        .transaction(|map| {
            map.resize(bus.root, 1 << 64)?;
            let low = map.ram("low", low.clone())?;
            let high = map.ram("high", high.clone())?;
            let part = map.alias("part", high, 0x8000, 0x8000)?;
            let top = map.alias("top", high, 0x10_0000 - 0x2_0000, 0x2_0000)?;
            map.add_subregion(bus.root, 0, low)?;
            map.add_subregion(bus.root, 1 << 20, part)?;
            map.add_subregion(bus.root, u64::MAX - 0x1_ffff, top)?;
            Ok(())
        })
        .unwrap();
    let mut log = bus.map.claim_global_log(MIGRATION).unwrap();
    bus.device(0x20_0000, 1);
    let memory = bus.space.memory();
    let text: Vec<u8> = (0..0x2000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let at = GuestAddress((1 << 20) - 0x1000);
    memory.write_slice(&text, at).unwrap();
    memory.ram().read_slice(&mut vec![0; 0x2000], at).unwrap();
    let mut back = vec![0; 0x1000];
    high.read(0x8000, &mut back).unwrap();
    assert_eq!(back, text[0x1000..]);
    for (block, pages) in [(&low, [0xf_f000]), (&high, [0x8000])] {
        let dirty = log.snapshot_and_clear(block, 0..block.len()).unwrap().commit();
        let pages = pages.map(|byte| block.page_size().page_of(byte));
        assert_eq!(dirty.pages().collect::<Vec<_>>(), pages, "{}", block.id());
    }
    // Nothing there, or a device.
    for nowhere in [0x10_8000, 0x20_0000, u64::MAX - 0x2_0000] {
        assert!(memory.read_obj::<u8>(GuestAddress(nowhere)).is_err());
        assert!(memory.ram().read_obj::<u8>(GuestAddress(nowhere)).is_err());
    }
    assert_eq!(memory.write(&[1; 0x2000], GuestAddress(0x10_7000)).unwrap(), 0x1000);
    // The last byte, and not past it.
    memory.write_obj(7u8, GuestAddress(u64::MAX)).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::MAX)).unwrap(), 7);
    assert!(memory.write_obj(7u16, GuestAddress(u64::MAX)).is_err());
    // What vm-memory does by itself would go on at address 0: it does not get there.
    let (ram, top) = (memory.ram(), u64::MAX - low.page_size().bytes());
    assert_eq!(ram.last_addr(), GuestAddress(top));
    low.write(0, &[9]).unwrap();
    for start in [top, u64::MAX] {
        assert!(ram.write_slice(&[5; 0x2000], GuestAddress(start)).is_err());
        assert!(ram.read_slice(&mut [0; 0x2000], GuestAddress(start)).is_err());
        assert!(memory.write_slice(&[5; 0x2000], GuestAddress(start)).is_err());
    }
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 9);

    use ram_block::vm_memory::GuestMemoryRegion;
    let part = memory.ram().find_region(GuestAddress(1 << 20)).unwrap();
    assert_eq!((part.offset(), part.block().id()), (0x8000, "high"));
    let host = memory.ram().get_host_address(GuestAddress((1 << 20) + 5)).unwrap();
    assert_eq!(host as usize, high.host_address() as usize + 0x8005);
    let file = part.file_offset().unwrap();
    assert_eq!(file.start(), 0x8000);
    assert!(memory.ram().find_region(GuestAddress(0)).unwrap().file_offset().is_none());
    // Who keeps the memory keeps the map.
    bus.map.transaction(|map| map.set_enabled(bus.root, false)).unwrap();
    memory.read_obj::<u8>(GuestAddress(0)).unwrap();
    assert!(bus.space.memory().read_obj::<u8>(GuestAddress(0)).is_err());
}

/// Another process maps what a range is a part of by the file and the offset in it.
#[test]
fn a_range_says_where_in_its_file_it_is() {
    use ram_block::vm_memory::GuestMemoryRegion;
    let bus = Bus::new();
    let (all, page) = (RamBlock::memfd("all", 1 << 20).unwrap(), 0x1_0000);
    let file = all.file().unwrap().try_clone().unwrap();
    let part = RamBlock::builder("part", 4 * page).file(file, 3 * page).unwrap();
    bus.map
        .transaction(|map| {
            let ram = map.ram("part", part.clone())?;
            let window = map.alias("window", ram, page, (2 * page).into())?;
            map.add_subregion(bus.root, 0, window)
        })
        .unwrap();
    bus.space.write(0, b"here").unwrap();
    let view = bus.space.view();
    let range = view.ram().find_region(GuestAddress(0)).unwrap();
    let start = range.file_offset().unwrap().start();
    assert_eq!(start, 4 * page);
    let mut found = [0; 4];
    all.read(start, &mut found).unwrap();
    assert_eq!(&found, b"here");
}

/// A block that was made smaller, in a region that was not.
#[test]
fn what_a_block_has_no_more_reads_as_nothing() {
    let bus = Bus::new();
    let ram = block("ram");
    bus.map
        .transaction(|map| {
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(bus.root, 0, region)
        })
        .unwrap();
    ram.resize(0x8_0000).unwrap();
    let mut data = [5; 4];
    let error = bus.space.read(0xc_0000, &mut data).unwrap_err();
    assert!(matches!(error, AccessError::Block(_)), "{error}");
    assert_eq!(data, [0xff; 4]);
    assert!(bus.space.write(0xc_0000, &data).is_err());
}
