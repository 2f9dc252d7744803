//! What interpreters ask of a bus: traps, bus faults, an open bus, banks, address lines,
//! watchpoints.

use std::sync::{Arc, Mutex};

use memory_region::{
    AccessError, AccessSizes, AddressSpace, BusFault, ListenerError, MapError, MemoryListener,
    MemoryMap, MmioAccess, MmioDevice, RegionId, Section, Tlb, Trap, ViewChange, Watchpoint,
    WatchpointKind,
};
use proptest::prelude::*;
use ram_block::RamBlock;

fn ram(id: &str, len: u64) -> Arc<RamBlock> {
    RamBlock::anonymous(id, len).unwrap()
}

/// A space of 64 KiB with RAM at 0, a trap of 256 bytes at 0x8000, and a device at 0x9000.
fn machine(device: Arc<dyn MmioDevice>) -> (Arc<MemoryMap>, Arc<AddressSpace>) {
    let map = MemoryMap::new();
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 16)?;
        let memory = map.ram("ram", ram("ram", 0x8000))?;
        let trap = map.trap("uart", 0x100, 77)?;
        let device = map.mmio("device", 0x100, device)?;
        map.add_subregion(root, 0, memory)?;
        map.add_subregion(root, 0x8000, trap)?;
        map.add_subregion(root, 0x9000, device)?;
        Ok(root)
    });
    let space = map.address_space("cpu", root.unwrap()).unwrap();
    (map, space)
}

/// Answers offsets from 0x40 on with faults.
struct Faulty;

impl Faulty {
    fn check(offset: u64) -> Result<(), BusFault> {
        match offset {
            0..0x40 => Ok(()),
            0x40..0x80 => Err(BusFault::Device),
            0x80..0xc0 => Err(BusFault::Decode),
            _ => Err(BusFault::Access),
        }
    }
}

impl MmioDevice for Faulty {
    fn read(&self, _: u64, _: usize) -> u64 {
        0x1111_1111_1111_1111
    }

    fn write(&self, _: u64, _: usize, _: u64) {}

    fn try_read(&self, offset: u64, size: usize) -> Result<u64, BusFault> {
        Self::check(offset).map(|()| self.read(offset, size))
    }

    fn try_write(&self, offset: u64, _: usize, _: u64) -> Result<(), BusFault> {
        Self::check(offset)
    }

    fn access(&self) -> MmioAccess {
        MmioAccess { implemented: AccessSizes::aligned(4, 4), ..MmioAccess::default() }
    }
}

#[test]
fn an_access_to_a_trap_is_handed_to_the_caller() {
    let (_map, space) = machine(Arc::new(Faulty));
    let mut tlb: Tlb = Tlb::new(&space);
    let trap = |offset, size, value| Trap { token: 77, offset, size, value };
    let taken = |result: Result<(), AccessError>| match result {
        Err(AccessError::Trap(trap)) => trap,
        other => panic!("{other:?} is no trap"),
    };
    assert_eq!(taken(tlb.load_le::<u16>(0x8002).map(drop)), trap(2, 2, None));
    assert_eq!(taken(tlb.load_be::<u64>(0x80f8).map(drop)), trap(0xf8, 8, None));
    assert_eq!(taken(tlb.fetch_le::<u32>(0x8004).map(drop)), trap(4, 4, None));
    assert_eq!(taken(tlb.load_reserved_le::<u32>(0x8004).map(drop)), trap(4, 4, None));
    // Unaligned, too; the value is what was passed.
    assert_eq!(taken(tlb.store_le(0x8001, 0x1234_u16)), trap(1, 2, Some(0x1234)));
    assert_eq!(taken(tlb.store_be(0x8010, 0x1234_u16)), trap(0x10, 2, Some(0x1234)));
    assert_eq!(taken(tlb.store_be(0x8010, 0xff_u8)), trap(0x10, 1, Some(0xff)));
    let value = 0x1122_3344_5566_7788_u64;
    assert_eq!(taken(tlb.store_be(0x8000, value)), trap(0, 8, Some(value)));
    // Of which a part is elsewhere.
    let crossing = tlb.store_le(0x7ffc, value);
    assert!(matches!(crossing, Err(AccessError::UnhandledTrap { .. })), "{crossing:?}");
    assert_eq!(tlb.load_le::<u32>(0x7ffc).unwrap(), 0x5566_7788);
    let past = tlb.load_le::<u64>(0x80fc);
    assert!(matches!(past, Err(AccessError::UnhandledTrap { .. })), "{past:?}");
    let atomic = tlb.fetch_update_le(0x8000, |old: u32| old + 1);
    assert!(matches!(atomic, Err(AccessError::UnhandledTrap { .. })), "{atomic:?}");
    // By others than a TLB.
    let mut bytes = [0; 4];
    let read = space.read(0x8000, &mut bytes).unwrap_err();
    assert!(matches!(&read, AccessError::UnhandledTrap { name, .. } if name == "uart"), "{read}");
    assert_eq!(bytes, [0xff; 4]);
    assert!(matches!(space.write(0x8000, &[1]), Err(AccessError::UnhandledTrap { .. })));
}

#[test]
fn a_device_answers_with_a_bus_fault() {
    let (_map, space) = machine(Arc::new(Faulty));
    let mut tlb: Tlb = Tlb::new(&space);
    assert_eq!(tlb.load_le::<u32>(0x9000).unwrap(), 0x1111_1111);
    let faults = [(0x40, BusFault::Device), (0x80, BusFault::Decode), (0xc0, BusFault::Access)];
    for (offset, expected) in faults {
        let loaded = tlb.load_le::<u16>(0x9000 + offset).map(drop);
        for result in [loaded, tlb.store_le(0x9000 + offset, 1_u8)] {
            match result {
                Err(AccessError::Fault { fault, name, address, .. }) => {
                    assert_eq!((fault, &*name, address), (expected, "device", 0x9000 + offset));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // Words without a fault are read all the same.
    let mut bytes = [0; 8];
    assert!(matches!(space.read(0x903c, &mut bytes), Err(AccessError::Fault { .. })));
    assert_eq!(bytes, [0x11, 0x11, 0x11, 0x11, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn an_open_bus_reads_as_its_value() {
    let map = MemoryMap::new();
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 16)?;
        let memory = map.ram("ram", ram("ram", 0x1000))?;
        let open = map.open_bus("open", 1 << 16, 0xa5)?;
        map.add_subregion_overlap(root, 0, open, i32::MIN)?;
        map.add_subregion_overlap(root, 0x1000, memory, 0)?;
        Ok(root)
    });
    let space = map.address_space("cpu", root.unwrap()).unwrap();
    let mut tlb: Tlb = Tlb::new(&space);
    assert_eq!(tlb.load_le::<u32>(0).unwrap(), 0xa5a5_a5a5);
    tlb.store_le(0x10, 1_u32).unwrap();
    assert_eq!(tlb.load_le::<u32>(0x10).unwrap(), 0xa5a5_a5a5);
    assert_eq!(tlb.load_le::<u16>(0x0fff).unwrap(), 0x00a5);
    assert!(tlb.fetch_update_le(0, |old: u8| old).is_err());
    assert!(format!("{}", map.mtree()).contains("open bus): open"));
}

/// Root, the bank, an alias of it, and the block of a map in which aliases meet others.
struct Banked {
    map: Arc<MemoryMap>,
    spaces: Vec<Arc<AddressSpace>>,
    aliases: Vec<RegionId>,
}

const BANK: u64 = 0x1000;

impl Banked {
    /// Three windows side by side on one block, one of them by an alias of an alias, one below
    /// another; a space of a single alias; and a device behind an alias.
    fn new() -> Self {
        let map = MemoryMap::new();
        let (aliases, roots) = map
            .transaction(|map| {
                let size = u128::from(BANK);
                let root = map.container("system", 1 << 16)?;
                let memory = map.ram("ram", ram("ram", 16 * BANK))?;
                let device = map.mmio("device", 16 * size, Arc::new(Faulty))?;
                let first = map.alias("first", memory, 0, size)?;
                let second = map.alias("second", memory, BANK, size)?;
                let inner = map.alias("inner", memory, 0, 4 * size)?;
                let outer = map.alias("outer", inner, 0, 2 * size)?;
                let below = map.alias("below", memory, 8 * BANK, 4 * size)?;
                let registers = map.alias("registers", device, 0, size)?;
                map.set_coalescing(device, &[0x100..0x140, 0x2100..0x2200])?;
                let only = map.alias("only", memory, 0, 8 * size)?;
                map.add_subregion(root, BANK, first)?;
                map.add_subregion(root, 2 * BANK, second)?;
                map.add_subregion(root, 3 * BANK, outer)?;
                map.add_subregion_overlap(root, 4 * BANK, below, -1)?;
                map.add_subregion(root, 9 * BANK, registers)?;
                Ok((vec![first, second, inner, outer, below, registers, only], [root, root, only]))
            })
            .unwrap();
        let space = |root| map.address_space("cpu", root).unwrap();
        let spaces = roots.into_iter().map(space).collect();
        Self { map, spaces, aliases }
    }

    fn views(&self) -> Vec<String> {
        let shown = |space: &Arc<AddressSpace>| {
            let view = space.view();
            // The look-up as well as the list.
            let found: Vec<_> = (0..16)
                .map(|page| view.section_at(page * BANK + 5).map(|section| section.start()))
                .collect();
            let events = (view.ioeventfds(), view.coalesced());
            #[cfg(feature = "vm-memory")]
            let events = (events, view.ram());
            format!("{:?} {found:?} {events:?}", view.sections())
        };
        self.spaces.iter().map(shown).collect()
    }
}

proptest! {
    /// A bank that is switched in place shows what a rendered map shows.
    #[test]
    fn a_switched_bank_is_a_rendered_one(
        switches in prop::collection::vec((0..7usize, 0..16u64, 0..3u64), 1..30),
    ) {
        let (ours, rendered) = (Banked::new(), Banked::new());
        for (alias, bank, fine) in switches {
            let offset = bank * BANK + fine * 0x200;
            let moved = ours.map.set_alias_offset(ours.aliases[alias], offset);
            let alias = rendered.aliases[alias];
            let expected = rendered.map.transaction(|map| map.set_alias_offset(alias, offset));
            let text = |result: Result<(), MapError>| result.map_err(|error| error.to_string());
            prop_assert_eq!(text(moved), text(expected));
            prop_assert_eq!(ours.views(), rendered.views());
            // A commit afterwards starts from the same tree.
            prop_assert_eq!(ours.map.mtree().to_string(), rendered.map.mtree().to_string());
        }
        ours.map.transaction(|map| map.set_enabled(ours.aliases[0], false)).unwrap();
        rendered.map.transaction(|map| map.set_enabled(rendered.aliases[0], false)).unwrap();
        prop_assert_eq!(ours.views(), rendered.views());
    }

    /// On a bus with few address lines every byte is where its low bits say, by the space and by a
    /// TLB, whose pages may be larger than the bus.
    #[test]
    fn upper_address_bits_do_not_count(
        bits in prop_oneof![Just(9u32), Just(13), Just(16), Just(24)],
        accesses in prop::collection::vec(
            (any::<u64>(), 0..64u64, 0..4u32, any::<bool>(), any::<u64>()), 1..60),
    ) {
        let map = MemoryMap::new();
        // More than the bus has.
        let root = map.transaction(|map| map.ram("ram", ram("ram", 32 << 20))).unwrap();
        let space = map.wrapping_address_space("cpu", root, bits).unwrap();
        prop_assert_eq!(space.address_mask(), (1 << bits) - 1);
        let mut tlb: Tlb = Tlb::new(&space);
        let mut model = std::collections::BTreeMap::<u64, u8>::new();
        for (upper, near, size, by_tlb, value) in accesses {
            // Near the end of the bus, and from there on.
            let address = (upper << bits).wrapping_sub(32).wrapping_add(near);
            let size = 1usize << size;
            let bytes = value.to_le_bytes();
            let places: Vec<u64> =
                (0..size as u64).map(|n| address.wrapping_add(n) & ((1 << bits) - 1)).collect();
            let expected = places.iter().enumerate()
                .map(|(n, place)| u64::from(model.get(place).copied().unwrap_or(0)) << (8 * n))
                .sum::<u64>();
            let mut found = [0; 8];
            space.read(address, &mut found[..size]).unwrap();
            let found = u64::from_le_bytes(found);
            prop_assert_eq!(found, expected, "{} bytes at {:#x}", size, address);
            let loaded = match size {
                1 => tlb.load_le::<u8>(address).unwrap().into(),
                2 => tlb.fetch_le::<u16>(address).unwrap().into(),
                4 => tlb.load_le::<u32>(address).unwrap().into(),
                _ => tlb.load_le::<u64>(address).unwrap(),
            };
            prop_assert_eq!(loaded, expected, "{} bytes at {:#x}", size, address);
            match (by_tlb, size) {
                (true, 1) => tlb.store_le(address, bytes[0]).unwrap(),
                (true, 8) => tlb.store_le(address, value).unwrap(),
                _ => space.write(address, &bytes[..size]).unwrap(),
            }
            model.extend(places.into_iter().zip(bytes));
        }
    }

    /// A watchpoint stops what it names, and nothing else.
    #[test]
    fn watchpoints_stop_what_they_name(
        watchpoints in prop::collection::vec((0..0x2000u64, 0..12u64, 0..3u8), 0..4),
        accesses in prop::collection::vec((0..0x2000u64, 0..4u32, 0..3u8), 1..60),
        near in any::<bool>(),
    ) {
        let (_map, space) = machine(Arc::new(Faulty));
        let mut tlb: Tlb = Tlb::new(&space);
        let at = |address: u64| if near { 0xff0 + address % 0x20 } else { address };
        let watchpoints: Vec<_> = watchpoints.into_iter().map(|(address, len, kind)| {
            let kinds = [WatchpointKind::Write, WatchpointKind::Read, WatchpointKind::Access];
            Watchpoint { address: at(address), len, kind: kinds[usize::from(kind)] }
        }).collect();
        tlb.load_le::<u64>(0x1000).unwrap();
        watchpoints.iter().for_each(|watchpoint| tlb.insert_watchpoint(*watchpoint));
        let run = |tlb: &mut Tlb, address, size, what| match (what, size) {
            (0, 1) => tlb.load_le::<u8>(address).map(drop),
            (0, 4) => tlb.load_le::<u32>(address).map(drop),
            (0, _) => tlb.load_le::<u64>(address).map(drop),
            (1, 1) => tlb.store_le(address, 0xff_u8),
            (1, 4) => tlb.store_le(address, u32::MAX),
            (1, _) => tlb.store_le(address, u64::MAX),
            (_, 1) => tlb.compare_exchange_le(address, 0_u8, 1).map(drop),
            (_, 4) => tlb.compare_exchange_le(address & !3, 0_u32, 1).map(drop),
            (_, _) => tlb.compare_exchange_le(address & !7, 0_u64, 1).map(drop),
        };
        for (address, size, what) in accesses {
            let size = [1, 4, 8][(size % 3) as usize];
            let address = if what == 2 { at(address) & !(size - 1) } else { at(address) };
            let hit = watchpoints.iter().find(|watchpoint| {
                let bytes = watchpoint.address..watchpoint.address + watchpoint.len;
                let stops = match watchpoint.kind {
                    WatchpointKind::Read => what != 1,
                    WatchpointKind::Write => what != 0,
                    WatchpointKind::Access => true,
                };
                stops
                    && (address..address + size).any(|byte| bytes.contains(&byte))
            });
            let mut before = [0; 8];
            space.read(address, &mut before).unwrap();
            match (run(&mut tlb, address, size, what), hit) {
                (Err(AccessError::Watchpoint { watchpoint, .. }), Some(hit)) => {
                    prop_assert_eq!(watchpoint, *hit);
                    let mut after = [0; 8];
                    space.read(address, &mut after).unwrap();
                    prop_assert_eq!(before, after, "carried out");
                    let ignored = tlb.ignoring_watchpoints(|tlb| run(tlb, address, size, what));
                    prop_assert!(ignored.is_ok());
                }
                (result, None) => prop_assert!(result.is_ok(), "{result:?}"),
                (result, Some(hit)) => prop_assert!(false, "{result:?} in spite of {hit}"),
            }
            prop_assert!(tlb.fetch_le::<u8>(address).is_ok());
            prop_assert!(tlb.ram_at(address).is_some());
        }
        for watchpoint in &watchpoints {
            prop_assert!(tlb.remove_watchpoint(*watchpoint));
            prop_assert!(!watchpoints.is_empty());
        }
        prop_assert!(tlb.store_le(0x1000, 1_u8).is_ok());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let map = MemoryMap::new();
    let (root, alias) = map
        .transaction(|map| {
            let memory = map.ram("ram", ram("ram", 0x4000))?;
            Ok((memory, map.alias("bank", memory, 0, 0x1000)?))
        })
        .unwrap();
    let outside = map.set_alias_offset(alias, 0x3001).unwrap_err();
    assert!(matches!(outside, MapError::AliasOutside { offset: 0x3001, .. }), "{outside}");
    map.set_alias_offset(alias, 0x3000).unwrap();
    let none = map.set_alias_offset(root, 0).unwrap_err();
    assert!(matches!(&none, MapError::NotAnAlias { name } if name == "ram"), "{none}");
    map.transaction(|map| map.remove(alias)).unwrap();
    assert!(matches!(map.set_alias_offset(alias, 0), Err(MapError::UnknownRegion { .. })));
    for bits in [0, 65] {
        let error = map.wrapping_address_space("cpu", root, bits).unwrap_err();
        assert!(matches!(error, MapError::AddressBits { .. }), "{error}");
    }
    assert!(map.transaction(|map| map.trap("none", 0, 1)).is_err());
    assert!(map.transaction(|map| map.open_bus("none", 0, 1)).is_err());
    // From within an update.
    let inner = map.transaction(|_| map.set_alias_offset(alias, 0));
    assert!(matches!(inner, Err(MapError::Reentrant)));
}

#[test]
fn a_bank_is_switched_at_all_its_addresses() {
    let banked = Banked::new();
    let block = banked.map.ram_blocks()[0].clone();
    (0..16u8).for_each(|bank| block.write(u64::from(bank) * BANK, &[bank]).unwrap());
    let root = banked.spaces[0].root();
    let space = banked.map.wrapping_address_space("cpu", root, 16).unwrap();
    let mut tlb: Tlb = Tlb::new(&space);
    for bank in [3, 7, 5] {
        banked.map.set_alias_offset(banked.aliases[0], u64::from(bank) * BANK).unwrap();
        for upper in 0..4 {
            let address = upper << 16 | BANK;
            assert_eq!(tlb.load_le::<u8>(address).unwrap(), bank);
            assert_eq!(tlb.fetch_le::<u8>(address).unwrap(), bank);
        }
    }
}

/// Notes where the sections that come begin in their regions; refuses some.
#[derive(Default)]
struct Follower(Mutex<Vec<u64>>);

impl MemoryListener for Follower {
    fn name(&self) -> &str {
        "follower"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let added = change.added.iter().map(Section::offset);
        if added.clone().any(|offset| offset == 13 * BANK) {
            return Err("not this one".into());
        }
        self.0.lock().unwrap().extend(added);
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

#[test]
fn a_listener_hears_of_a_switched_bank() {
    let banked = Banked::new();
    let follower = Arc::new(Follower::default());
    banked.map.add_listener(&banked.spaces[0], follower.clone()).unwrap();
    follower.0.lock().unwrap().clear();
    let switch = |bank| banked.map.set_alias_offset(banked.aliases[0], bank * BANK);
    switch(5).unwrap();
    // It went on in the second window before.
    assert_eq!(*follower.0.lock().unwrap(), [5 * BANK, BANK]);
    let before = banked.views();
    assert!(matches!(switch(13), Err(MapError::Refused { .. })));
    assert_eq!(banked.views(), before);
    // It is where it was.
    banked.map.transaction(|map| map.set_enabled(banked.aliases[1], false)).unwrap();
    let first = banked.spaces[0].view().sections()[0].offset();
    assert_eq!(first, 5 * BANK);
}

#[test]
fn what_a_tlb_does_is_counted() {
    let map = MemoryMap::new();
    let (root, bank) = map
        .transaction(|map| {
            let root = map.container("system", 1 << 32)?;
            let memory = map.ram("ram", ram("ram", 4 << 20))?;
            let bank = map.alias("bank", memory, 0, u128::from(BANK))?;
            let trap = map.trap("trap", 8, 0)?;
            map.add_subregion(root, 0, memory)?;
            map.add_subregion(root, 1 << 30, bank)?;
            map.add_subregion(root, 1 << 31, trap)?;
            Ok((root, bank))
        })
        .unwrap();
    let mut log = map.claim_global_log("a log").unwrap();
    let block = map.ram_blocks()[0].clone();
    let mut tlb: Tlb = Tlb::new(&map.address_space("cpu", root).unwrap());
    let mut pages = ram_block::PageSet::new(block.pages()).unwrap();
    // Pages of more than the TLB has: each is refilled, and marked, once a round.
    for round in 1..=2_u64 {
        log.move_to(&block, &mut pages).unwrap();
        for at in (0..block.len()).step_by(64) {
            tlb.store_le(at, round).unwrap();
        }
    }
    let statistics = tlb.statistics();
    assert_eq!((statistics.refills, statistics.marked_stores), (2048, 2048));
    assert_eq!((statistics.by_view, statistics.commits), (0, 0));
    // Counted as well when nothing is left of the pages.
    tlb.flush();
    assert_eq!(tlb.statistics(), statistics);
    assert!(tlb.load_le::<u8>(1 << 31).is_err());
    assert!(tlb.load_le::<u32>(1).is_ok());
    assert!(tlb.store_le(0x1234_5678, 0_u8).is_err());
    map.set_alias_offset(bank, BANK).unwrap();
    map.set_alias_offset(bank, 2 * BANK).unwrap();
    assert_eq!(tlb.load_le::<u8>(1 << 30).unwrap(), 2);
    let now = tlb.statistics();
    assert_eq!((now.by_view, now.commits, now.marked_stores), (3, 1, 2048));
}

#[test]
fn a_trap_ends_with_the_bus() {
    let map = MemoryMap::new();
    // One byte more than the bus has.
    let root = map.transaction(|map| map.trap("trap", (1 << 16) + 1, 3)).unwrap();
    let mut tlb: Tlb = Tlb::new(&map.wrapping_address_space("cpu", root, 16).unwrap());
    assert!(matches!(tlb.load_le::<u16>(0xfffe), Err(AccessError::Trap(_))));
    assert!(matches!(tlb.load_le::<u16>(0xffff), Err(AccessError::UnhandledTrap { .. })));
}

#[test]
fn an_atomic_access_stays_in_its_section_and_on_its_bus() {
    let map = MemoryMap::new();
    let block = ram("ram", 0x1_0000);
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 16)?;
        let memory = map.ram("ram", block.clone())?;
        let part = map.alias("part", memory, 0x100, 4)?;
        map.add_subregion(root, 0, part)?;
        Ok((root, memory))
    });
    let (root, memory) = root.unwrap();
    let mut tlb: Tlb = Tlb::new(&map.wrapping_address_space("cpu", root, 16).unwrap());
    let set = |tlb: &mut Tlb, at| tlb.fetch_update_le(at, |old: u64| old | 1 << 40);
    assert!(matches!(set(&mut tlb, 0), Err(AccessError::NotMemory { .. })));
    assert!(tlb.fetch_update_le(0x5_0000, |old: u32| old | 1).is_ok(), "upper bits");
    let mut tlb: Tlb = Tlb::new(&map.wrapping_address_space("small", memory, 2).unwrap());
    assert!(matches!(set(&mut tlb, 0), Err(AccessError::NotMemory { .. })));
    assert_eq!(tlb.ram_at(3).map(|(_, offset, len)| (offset, len)), Some((3, 1)));
    let mut bytes = vec![0; 0x1_0000];
    block.read(0, &mut bytes).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 1);
}

#[test]
fn a_conditional_store_is_of_what_was_reserved() {
    let (_map, space) = machine(Arc::new(Faulty));
    let mut tlb: Tlb = Tlb::new(&space);
    tlb.load_reserved_le::<u32>(0x100).unwrap();
    assert!(!tlb.store_conditional_le(0x100, 1_u64).unwrap(), "more than was reserved");
    // A watchpoint that stops it leaves the reservation.
    let watchpoint = Watchpoint { address: 0x100, len: 4, kind: WatchpointKind::Write };
    tlb.insert_watchpoint(watchpoint);
    tlb.load_reserved_le::<u32>(0x100).unwrap();
    let stopped = tlb.store_conditional_le(0x100, 1_u32);
    assert!(matches!(stopped, Err(AccessError::Watchpoint { .. })), "{stopped:?}");
    assert!(tlb.ignoring_watchpoints(|tlb| tlb.store_conditional_le(0x100, 1_u32)).unwrap());
    assert!(!tlb.ignoring_watchpoints(|tlb| tlb.store_conditional_le(0x100, 1_u32)).unwrap());
}

#[test]
fn watchpoints_are_of_the_bus() {
    let map = MemoryMap::new();
    let root = map.transaction(|map| map.ram("ram", ram("ram", 0x1_0000))).unwrap();
    let mut tlb: Tlb = Tlb::new(&map.wrapping_address_space("cpu", root, 16).unwrap());
    tlb.insert_watchpoint(Watchpoint { address: 0, len: 1, kind: WatchpointKind::Write });
    tlb.insert_watchpoint(Watchpoint { address: 0x2000, len: 8, kind: WatchpointKind::Read });
    let is_stopped =
        |result: Result<(), AccessError>| matches!(result, Err(AccessError::Watchpoint { .. }));
    assert!(is_stopped(tlb.store_le(0xffff, 0x1234_u16)));
    assert!(is_stopped(tlb.store_le(0x7_0000, 1_u8)), "upper bits do not count");
    assert!(!is_stopped(tlb.store_le(1, 1_u8)));
    assert!(!is_stopped(tlb.store_le(0x2000, 1_u8)));
    // An atomic access loads as well.
    assert!(is_stopped(tlb.compare_exchange_le(0x2000, 1_u8, 2).map(drop)));
    assert!(is_stopped(tlb.fetch_update_le(0x2000, |old: u8| old).map(drop)));
    assert_eq!(tlb.ignoring_watchpoints(|tlb| tlb.load_le::<u8>(0x2000)).unwrap(), 1);
    // Also after a panic.
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tlb.ignoring_watchpoints(|_| panic!("as it should"));
    }));
    assert!(panics.is_err() && is_stopped(tlb.load_le::<u8>(0x2000).map(drop)));
}

#[test]
fn a_removed_space_has_nothing() {
    let (map, space) = machine(Arc::new(Faulty));
    let mut tlb: Tlb = Tlb::new(&space);
    tlb.store_le(0, 7_u8).unwrap();
    assert_eq!(tlb.fetch_le::<u8>(0).unwrap(), 7);
    let kept = space.view();
    map.remove_address_space(&space).unwrap();
    for result in [tlb.load_le::<u8>(0).map(drop), tlb.store_le(0, 1_u8), space.write(0, &[1])] {
        assert!(matches!(result, Err(AccessError::Unassigned { .. })), "{result:?}");
    }
    assert!(tlb.fetch_le::<u8>(0).is_err() && tlb.ram_at(0).is_none());
    let mut byte = [0];
    kept.bus_read(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

/// The page of the last instruction, and those before it.
#[test]
fn fetches_follow_a_switched_bank() {
    let banked = Banked::new();
    let block = banked.map.ram_blocks()[0].clone();
    (0..16u8).for_each(|bank| block.write(u64::from(bank) * BANK, &[bank]).unwrap());
    let mut tlb: Tlb = Tlb::new(&banked.spaces[0]);
    for elsewhere in [false, true] {
        for bank in [4, 9, 2] {
            banked.map.set_alias_offset(banked.aliases[0], u64::from(bank) * BANK).unwrap();
            assert_eq!(tlb.fetch_le::<u8>(BANK).unwrap(), bank);
            if elsewhere {
                tlb.fetch_le::<u8>(3 * BANK).unwrap();
            }
        }
    }
}

/// A flash chip, and registers that fail when they are read.
#[test]
fn writes_of_a_rom_device_are_the_devices() {
    struct Chip(Mutex<Vec<(u64, u64)>>);
    impl MmioDevice for Chip {
        fn read(&self, _: u64, _: usize) -> u64 {
            0
        }

        fn write(&self, offset: u64, _: usize, value: u64) {
            self.0.lock().unwrap().push((offset, value));
        }

        fn try_read(&self, _: u64, _: usize) -> Result<u64, BusFault> {
            Err(BusFault::Decode)
        }

        fn access(&self) -> MmioAccess {
            MmioAccess { implemented: AccessSizes::aligned(4, 4), ..MmioAccess::default() }
        }
    }
    let chip = Arc::new(Chip(Mutex::default()));
    let map = MemoryMap::new();
    let block = ram("flash", 0x1000);
    let flash = map.transaction(|map| map.rom_device("flash", block.clone(), chip.clone()));
    let mut tlb: Tlb = Tlb::new(&map.address_space("cpu", flash.unwrap()).unwrap());
    assert_eq!(tlb.load_le::<u32>(0x10).unwrap(), 0);
    tlb.store_le(0x10, 0x98_u32).unwrap();
    assert_eq!(*chip.0.lock().unwrap(), [(0x10, 0x98)]);
    assert_eq!(tlb.load_le::<u32>(0x10).unwrap(), 0);
    // Of a byte the word around it is read: what fails is not written.
    let failed = tlb.store_le(0x20, 1_u8);
    assert!(matches!(failed, Err(AccessError::Fault { fault: BusFault::Decode, .. })));
    assert_eq!(chip.0.lock().unwrap().len(), 1);
}

#[test]
fn the_first_fault_of_an_access_is_told() {
    let (_map, space) = machine(Arc::new(Faulty));
    for result in [space.read(0x907c, &mut [0; 8]), space.write(0x907c, &[0; 8])] {
        assert!(matches!(result, Err(AccessError::Fault { fault: BusFault::Device, .. })));
    }
    // In one access of the processor as well, and in several pieces.
    assert!(matches!(
        space.read(0x9078, &mut [0; 0x50]),
        Err(AccessError::Fault { fault: BusFault::Device, .. })
    ));
}
