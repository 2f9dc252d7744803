//! What a debugger stops.

use std::sync::Arc;

use memory_region::{AccessError, MemoryMap, Tlb, Watchpoint, WatchpointKind};
use proptest::prelude::*;

use crate::machine::{Faulty, machine, ram};

proptest! {
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
