//! Nobody takes the bits of a log that is claimed, whichever way it is tried.

use std::ops::ControlFlow;
use std::sync::Arc;

use memory_region::{LogClaim, MapError, MemoryMap, RegionId};
use ram_block::{ClientSet, DirtyClient, DirtyError, DirtySnapshot, RamBlock};

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const LEN: u64 = 1 << 20;

fn map_with(ids: &[&str]) -> (Arc<MemoryMap>, Vec<(RegionId, Arc<RamBlock>)>) {
    let map = MemoryMap::new();
    let ram = ids.iter().map(|id| {
        let block = RamBlock::anonymous(id, LEN).unwrap();
        (map.transaction(|map| map.ram(id, block.clone())).unwrap(), block)
    });
    let ram = ram.collect();
    (map, ram)
}

fn is_claimed<T: std::fmt::Debug>(result: Result<T, MapError>) -> bool {
    matches!(result, Err(MapError::Claimed { .. }))
}

/// Every way to take `client`'s bits of a block, or to drop them, without the claim.
fn is_kept(map: &Arc<MemoryMap>, region: RegionId, block: &Arc<RamBlock>, client: DirtyClient) {
    let all = 0..block.pages();
    assert!(is_claimed(map.snapshot_and_clear(region, client, 0..LEN)));
    let buffer = DirtySnapshot::default();
    assert!(is_claimed(map.snapshot_and_clear_into(region, client, 0..LEN, buffer)));
    assert!(is_claimed(map.claim_log(region, client)));
    assert!(is_claimed(map.claim_global_log(client)));
    let (dirty, mut words) = (block.dirty(), vec![0; 64]);
    let refused = DirtyError::Claimed { client };
    assert_eq!(dirty.snapshot_and_clear(client, all.clone()).unwrap_err(), refused);
    assert_eq!(dirty.move_into(client, all.clone(), &mut words).unwrap_err(), refused);
    let visit = |_| ControlFlow::<()>::Continue(());
    assert_eq!(dirty.visit_runs(client, all, 0, visit).unwrap_err(), refused);
    assert_eq!(dirty.disable(client).unwrap_err(), refused);
    assert_eq!(dirty.claim(client).unwrap_err(), refused);
    // Through another map that shows the block; a log of its own does no harm.
    let other = MemoryMap::new();
    let shown = other.transaction(|map| map.ram("shown", block.clone())).unwrap();
    other.set_log(shown, client, true).unwrap();
    assert!(is_claimed(other.snapshot_and_clear(shown, client, 0..LEN)));
    assert!(is_claimed(other.claim_log(shown, client)));
    assert!(is_claimed(other.claim_global_log(client)));
    other.set_log(shown, client, false).unwrap();
    other.set_global_log(client, true).unwrap();
    other.transaction(|map| map.remove(shown)).unwrap();
    assert!(dirty.enabled().contains(client));
}

fn taken(log: &LogClaim, region: RegionId) -> Vec<u64> {
    log.snapshot_and_clear(region, 0..LEN).unwrap().commit().pages().collect()
}

#[test]
fn a_claimed_log_is_taken_through_the_claim_alone() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    // As one who harvests without a claim does.
    map.set_log(*region, VGA, true).unwrap();
    let log = map.claim_log(*region, VGA).unwrap();
    assert_eq!(log.client(), VGA);
    block.write(0x5000, &[1]).unwrap();
    is_kept(&map, *region, block, VGA);
    assert!(is_claimed(map.set_log(*region, VGA, false)));
    let refused = map.snapshot_and_clear(*region, VGA, 0..LEN).unwrap_err();
    assert_eq!(refused.to_string(), "Client vga's log of \"ram\" is already claimed");
    assert_eq!(taken(&log, *region), [5]);

    block.write(0x6000, &[1]).unwrap();
    drop(log.snapshot_and_clear(*region, 0..LEN).unwrap()); // given back
    let mut words = vec![0; 4];
    assert_eq!(log.move_into(block, 0..block.pages(), &mut words).unwrap(), 1);
    block.write(0x7000, &[1]).unwrap();
    let visited = log.visit_runs(block, 0..block.pages(), 0, ControlFlow::Break).unwrap();
    assert_eq!(visited.break_value(), Some(7..8));

    // Other clients go on as before.
    map.set_log(*region, MIGRATION, true).unwrap();
    block.write(0, &[1]).unwrap();
    assert!(map.snapshot_and_clear(*region, MIGRATION, 0..LEN).unwrap().commit().is_dirty(0));
    map.set_log(*region, MIGRATION, false).unwrap();
    drop(log);
    assert_eq!(block.dirty().enabled(), ClientSet::EMPTY);
    map.set_log(*region, VGA, true).unwrap();
    map.snapshot_and_clear(*region, VGA, 0..LEN).unwrap().commit();
    map.set_log(*region, VGA, false).unwrap();
}

/// Blocks that are there, that come, and that come again.
#[test]
fn a_claim_of_all_ram_has_the_blocks_that_come() {
    let (map, ram) = map_with(&["ram"]);
    let log = map.claim_global_log(MIGRATION).unwrap();
    let late = RamBlock::anonymous("late", LEN).unwrap();
    let shown = map.transaction(|map| map.ram("late", late.clone())).unwrap();
    for (region, block) in ram.iter().chain([&(shown, late.clone())]) {
        block.write(0x5000, &[1]).unwrap();
        is_kept(&map, *region, block, MIGRATION);
        assert!(is_claimed(map.set_global_log(MIGRATION, false)));
        assert!(taken(&log, *region).contains(&5));
    }
    // A region's own log may go on and off: the log of all RAM stays.
    map.set_log(shown, MIGRATION, true).unwrap();
    map.set_log(shown, MIGRATION, false).unwrap();
    assert!(late.dirty().enabled().contains(MIGRATION));

    map.transaction(|map| map.remove(shown)).unwrap();
    assert!(!late.dirty().is_claimed(MIGRATION) && late.dirty().enabled().is_empty());
    let gone = log.move_into(&late, 0..1, &mut [0]);
    assert!(matches!(gone, Err(MapError::NotClaimed { .. })), "{gone:?}");
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    assert!(late.dirty().is_claimed(MIGRATION));
    drop(log);
    assert!(!late.dirty().is_claimed(MIGRATION) && late.dirty().enabled().is_empty());
}

/// A log that another has claimed, at the block or in another map, is refused as a whole,
/// and leaves nothing claimed.
#[test]
fn a_claim_that_meets_another_leaves_everything_as_it_was() {
    let (map, ram) = map_with(&["a", "b"]);
    let theirs = ram[1].1.dirty().claim(MIGRATION).unwrap();
    let refused = map.claim_global_log(MIGRATION).unwrap_err();
    assert_eq!(refused.to_string(), "Client migration's log of block \"b\" is already claimed");
    assert!(!ram[0].1.dirty().is_claimed(MIGRATION) && ram[0].1.dirty().enabled().is_empty());
    let log = map.claim_log(ram[0].0, MIGRATION).unwrap();
    let other = log.snapshot_and_clear(ram[1].0, 0..LEN).unwrap_err();
    assert!(matches!(other, MapError::NotClaimed { .. }), "{other}");
    drop((theirs, log));

    // A block that is claimed elsewhere does not join a claimed log of all RAM.
    let log = map.claim_global_log(MIGRATION).unwrap();
    let late = RamBlock::anonymous("late", LEN).unwrap();
    let theirs = late.dirty().claim(MIGRATION).unwrap();
    assert!(is_claimed(map.transaction(|map| map.ram("late", late.clone()))));
    assert!(late.dirty().enabled().is_empty());
    drop(theirs);
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    drop(log);
}

/// The claim of a client that is registered, which ends with it.
#[test]
fn a_registered_clients_log_is_claimed_as_well() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let client = map.register_client("mine").unwrap();
    let log = map.claim_global_log(client.client()).unwrap();
    block.write(0x5000, &[1]).unwrap();
    is_kept_of_registered(&map, *region, block, client.client());
    assert_eq!(taken(&log, *region), [5]);
    let number = client.client();
    drop(client);
    assert!(!block.dirty().is_claimed(number));
    assert!(log.snapshot_and_clear(*region, 0..LEN).is_err());
    drop(log);
    drop(map.register_client("next").unwrap());
}

fn is_kept_of_registered(
    map: &Arc<MemoryMap>,
    region: RegionId,
    block: &Arc<RamBlock>,
    client: DirtyClient,
) {
    assert!(is_claimed(map.snapshot_and_clear(region, client, 0..LEN)));
    assert!(is_claimed(map.claim_log(region, client)));
    let refused = DirtyError::Claimed { client };
    assert_eq!(block.dirty().snapshot_and_clear(client, 0..1).unwrap_err(), refused);
    assert_eq!(block.dirty().disable(client).unwrap_err(), refused);
}
