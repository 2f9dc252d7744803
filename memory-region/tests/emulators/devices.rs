//! Traps, bus faults and open buses.

use std::sync::{Arc, Mutex};

use memory_region::{
    AccessError, AccessSizes, BusFault, MemoryMap, MmioAccess, MmioDevice, Tlb, Trap,
};

use crate::machine::{Faulty, machine, ram};

#[test]
fn an_access_to_a_trap_is_handed_to_the_caller() {
    let (_map, space) = machine(Arc::new(Faulty));
    let mut tlb: Tlb = Tlb::new(&space);
    let trap = |offset, size, value| (77, offset, size, value);
    let taken = |result: Result<(), AccessError>| match result {
        Err(AccessError::Trap(Trap { token, offset, size, value, .. })) => {
            (token, offset, size, value)
        }
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
