//! Address lines, and what a bus does not have.

use std::sync::Arc;

use memory_region::{AccessError, MapError, MemoryMap, Tlb};
use proptest::prelude::*;

use crate::machine::{Faulty, machine, ram};

proptest! {
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
