//! What a TLB counts.

use memory_region::{MemoryMap, Tlb};

use crate::machine::{BANK, ram};

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
