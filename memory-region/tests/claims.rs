//! A client's log is on as long as its claim exists, and nobody else takes its bits, whichever way
//! it is tried.

use std::ops::{Bound, ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use memory_region::{
    GlobalLogClaim, ListenerError, LogClaim, MapError, MemoryListener, MemoryMap, RegionId,
    Section, ViewChange,
};
use ram_block::{Claimant, ClientSet, DirtyClient, DirtyError, Harvest, PageSet, RamBlock};

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const LEN: u64 = 1 << 20;

fn block(id: &str) -> Arc<RamBlock> {
    RamBlock::anonymous(id, LEN).unwrap()
}

fn map_with(ids: &[&str]) -> (Arc<MemoryMap>, Vec<(RegionId, Arc<RamBlock>)>) {
    let map = MemoryMap::new();
    let ram = ids.iter().map(|id| {
        let block = block(id);
        (map.transaction(|map| map.ram(id, block.clone())).unwrap(), block)
    });
    let ram = ram.collect();
    (map, ram)
}

fn is_claimed<T: std::fmt::Debug>(result: Result<T, MapError>) -> bool {
    matches!(result, Err(MapError::Claimed { .. }))
}

/// Every way to get at `client`'s bits of a block beside the claim.
fn is_kept(map: &Arc<MemoryMap>, region: RegionId, block: &Arc<RamBlock>, client: DirtyClient) {
    assert!(is_claimed(map.claim_log(region, client)));
    assert!(is_claimed(map.claim_log(region, Claimant::named(client, "another"))));
    assert!(is_claimed(map.claim_global_log(client)));
    let refused = block.dirty().claim(client).unwrap_err();
    assert!(matches!(refused, DirtyError::Claimed { client: of, .. } if of == client));
    // Through another map that shows the block, and leaves again.
    let other = MemoryMap::new();
    let shown = other.transaction(|map| map.ram("shown", block.clone())).unwrap();
    assert!(is_claimed(other.claim_log(shown, client)));
    assert!(is_claimed(other.claim_global_log(client)));
    let theirs = other.claim_log(shown, "theirs").unwrap();
    other.transaction(|map| map.remove(shown)).unwrap();
    drop(theirs);
    assert!(block.dirty().enabled().contains(client));
}

fn taken(log: &mut LogClaim) -> Vec<u64> {
    log.snapshot_and_clear(0..LEN).unwrap().commit().pages().collect()
}

fn taken_of(log: &mut GlobalLogClaim, block: &Arc<RamBlock>) -> Vec<u64> {
    log.snapshot_and_clear(block, 0..LEN).unwrap().commit().pages().collect()
}

fn enabled(block: &Arc<RamBlock>) -> ClientSet {
    block.dirty().enabled()
}

#[test]
fn a_log_is_taken_through_its_claim_alone() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let mut log = map.claim_log(*region, VGA).unwrap();
    assert_eq!((log.client(), log.block().id()), (VGA, "ram"));
    block.write(0x5000, &[1]).unwrap();
    is_kept(&map, *region, block, VGA);
    let refused = map.claim_log(*region, VGA).unwrap_err();
    assert_eq!(refused.to_string(), "The vga log of \"ram\" is claimed by \"vga\" already");
    assert_eq!(taken(&mut log), [5]);
    block.write(0x6000, &[1]).unwrap();
    drop(log.snapshot_and_clear(0..LEN).unwrap()); // given back
    assert_eq!(log.visit_runs(0, ControlFlow::Break).unwrap().break_value(), Some(6..7));
    block.write(0x7000, &[1]).unwrap();
    let mut pages = PageSet::new(block.pages()).unwrap();
    assert_eq!(log.move_to(&mut pages).unwrap(), 1);
    log.clear(0x7000..0x8000).unwrap();
    assert!(pages.contains(7));

    // Other clients go on as before.
    let mut other = map.claim_log(*region, MIGRATION).unwrap();
    block.write(0, &[1]).unwrap();
    assert_eq!(taken(&mut other), [0]);
    assert_eq!(enabled(block), ClientSet::EMPTY.with(VGA).with(MIGRATION));
    drop(other);
    assert_eq!(taken(&mut log), [0]);
    drop(log);
    assert_eq!(enabled(block), ClientSet::EMPTY);
    assert_eq!(taken(&mut map.claim_log(*region, VGA).unwrap()), [0; 0]);
}

/// The bits are the block's: a claim of another region of it, or of all RAM, would take the same
/// ones.
#[test]
fn claims_of_the_same_bits_meet() {
    let (map, ram) = map_with(&["ram", "stranger"]);
    let (region, stranger) = (ram[0].0, ram[1].0);
    let again = map.transaction(|map| map.ram("again", ram[0].1.clone())).unwrap();
    let claim = map.claim_log(region, VGA).unwrap();
    assert!(is_claimed(map.claim_log(again, VGA)));
    assert!(is_claimed(map.claim_global_log(VGA)));
    drop(map.claim_log(again, MIGRATION).unwrap());
    let beside = map.claim_log(stranger, VGA).unwrap();
    drop(claim);
    assert!(is_claimed(map.claim_global_log(VGA)));
    drop(beside);
    let all = map.claim_global_log(VGA).unwrap();
    assert!(is_claimed(map.claim_log(stranger, VGA)));
    drop(all);
    // A log whose region is gone is in nobody's way.
    let gone = map.claim_log(again, VGA).unwrap();
    map.transaction(|map| map.remove(again)).unwrap();
    let all = map.claim_global_log(VGA).unwrap();
    drop(gone);
    assert!(ram.iter().all(|(_, block)| enabled(block).contains(VGA)));
    drop(all);
}

/// Blocks that are there, that come, and that come again.
#[test]
fn a_claim_of_all_ram_has_the_blocks_that_come() {
    let (map, ram) = map_with(&["ram"]);
    let mut log = map.claim_global_log(MIGRATION).unwrap();
    let late = block("late");
    late.write(0, &[1]).unwrap();
    let shown = map.transaction(|map| map.ram("late", late.clone())).unwrap();
    let all = (0..late.pages()).collect::<Vec<_>>();
    assert_eq!(taken_of(&mut log, &late), all, "it has seen none of them");
    for (region, block) in ram.iter().chain([&(shown, late.clone())]) {
        block.write(0x5000, &[1]).unwrap();
        is_kept(&map, *region, block, MIGRATION);
        assert_eq!(taken_of(&mut log, block), [5]);
    }
    // A region's own log may come and go.
    drop(map.claim_log(shown, VGA).unwrap());
    assert_eq!(enabled(&late), ClientSet::EMPTY.with(MIGRATION));

    map.transaction(|map| map.remove(shown)).unwrap();
    assert_eq!(enabled(&late), ClientSet::EMPTY);
    let gone = log.move_into(&late, &mut [0; 4]);
    assert!(matches!(gone, Err(MapError::NotLogged { .. })), "{gone:?}");
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    assert_eq!(taken_of(&mut log, &late), all);
    drop(log);
    assert_eq!(enabled(&late), ClientSet::EMPTY);
}

/// A log that another has claimed, at the block or in another map, is refused as a whole,
/// and leaves nothing claimed.
#[test]
fn a_claim_that_meets_another_leaves_everything_as_it_was() {
    let (map, ram) = map_with(&["a", "b"]);
    let theirs = ram[1].1.dirty().claim(MIGRATION).unwrap();
    let refused = map.claim_global_log(MIGRATION).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "The migration log of block \"b\" is claimed by \"migration\" already"
    );
    assert_eq!(enabled(&ram[0].1), ClientSet::EMPTY);
    drop(map.claim_log(ram[0].0, MIGRATION).unwrap());
    drop(theirs);

    // A block that is claimed elsewhere does not join a log of all RAM.
    let log = map.claim_global_log(MIGRATION).unwrap();
    let late = block("late");
    let theirs = late.dirty().claim(MIGRATION).unwrap();
    assert!(is_claimed(map.transaction(|map| map.ram("late", late.clone()))));
    late.write(0, &[1]).unwrap();
    assert!(theirs.snapshot_and_clear(0..1).unwrap().is_dirty(0), "theirs goes on");
    drop(theirs);
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    drop(log);
}

/// A name gets the first number that nobody has, here or at the blocks.
#[test]
fn a_name_gets_a_number_that_is_free_in_all_its_blocks() {
    let (map, ram) = map_with(&["one", "other"]);
    let theirs = ram[1].1.dirty().claim("theirs").unwrap();
    let of_one = map.claim_log(ram[0].0, "of one").unwrap();
    assert_eq!(of_one.client(), theirs.client(), "numbers are the block's");
    let mut mine = map.claim_global_log("mine").unwrap();
    assert_ne!(mine.client(), theirs.client());
    is_kept(&map, ram[0].0, &ram[0].1, mine.client());
    let late = block("late");
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    for block in [&ram[0].1, &ram[1].1, &late] {
        let _ = taken_of(&mut mine, block);
        block.write(0x5000, &[1]).unwrap();
        assert_eq!(taken_of(&mut mine, block), [5]);
    }
    // Names are for errors, and need not differ; there are five numbers.
    let more: Vec<_> = (0..3).map(|_| map.claim_global_log("mine").unwrap()).collect();
    let refused = map.claim_global_log("more").unwrap_err();
    assert!(matches!(refused, MapError::Dirty(DirtyError::TooManyClients { .. })), "{refused}");
    drop(more);
    let number = mine.client();
    drop(mine);
    assert!([&ram[0].1, &ram[1].1, &late].iter().all(|block| !enabled(block).contains(number)));
    assert_eq!(map.claim_global_log("next").unwrap().client(), number);
}

#[test]
fn who_cannot_log_is_refused_at_once() {
    let (map, ram) = map_with(&["ram"]);
    let inverse = |error: &MapError| matches!(error, MapError::Dirty(DirtyError::CodeClient));
    assert!(inverse(&map.claim_global_log(DirtyClient::CODE).unwrap_err()));
    assert!(inverse(&map.claim_log(ram[0].0, DirtyClient::CODE).unwrap_err()));
    assert!(inverse(&MemoryMap::new().claim_global_log(DirtyClient::CODE).unwrap_err()));
    let container = map.transaction(|map| map.container("root", 1 << 32)).unwrap();
    let refused = map.claim_log(container, "mine").unwrap_err();
    assert_eq!(refused.to_string(), "\"mine\" cannot log \"root\", which is no RAM");
}

/// Before any block is there, as well.
#[test]
fn names_get_numbers_of_their_own_in_a_map_without_blocks() {
    let map = MemoryMap::new();
    let mut logs = ["one", "other"].map(|name| map.claim_global_log(name).unwrap());
    assert_ne!(logs[0].client(), logs[1].client());
    let late = block("late");
    map.transaction(|map| map.ram("late", late.clone())).unwrap();
    for log in &mut logs {
        assert_eq!(taken_of(log, &late).len() as u64, late.pages());
    }
}

/// A number that was free may be claimed in another map before this one's commit has it: the next
/// one is tried then.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn names_that_race_in_two_maps_get_a_number_each() {
    let block = block("shared");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let map = MemoryMap::new();
                map.transaction(|map| map.ram("shown", block.clone())).unwrap();
                for _ in 0..5000 {
                    drop(map.claim_global_log("mine").unwrap());
                }
            });
        }
    });
    assert_eq!(enabled(&block), ClientSet::EMPTY);
}

/// A log ends with its region even while its bits are visited: its number is free at once.
#[test]
fn a_region_that_leaves_within_a_visit_frees_its_client() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let mut log = map.claim_log(*region, VGA).unwrap();
    block.write(0x5000, &[1]).unwrap();
    let mut visits = 0;
    let visited = log.visit_runs(0, |_| {
        visits += 1;
        map.transaction(|map| map.remove(*region)).unwrap();
        assert_eq!(enabled(block), ClientSet::EMPTY);
        let again = map.transaction(|map| map.ram("ram", block.clone())).unwrap();
        assert_eq!(taken(&mut map.claim_log(again, VGA).unwrap()), [0; 0]);
        ControlFlow::<()>::Continue(())
    });
    assert_eq!((visited.unwrap(), visits), (ControlFlow::Continue(()), 1));
}

/// A claim that outlives its region takes nothing from the next of its number.
#[test]
fn a_claim_whose_region_is_gone_has_no_bits() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let mut stale = map.claim_log(*region, VGA).unwrap();
    map.transaction(|map| map.remove(*region)).unwrap();
    assert_eq!(enabled(block), ClientSet::EMPTY);
    let again = map.transaction(|map| map.ram("ram", block.clone())).unwrap();
    let mut log = map.claim_log(again, VGA).unwrap();
    block.write(0, &[1]).unwrap();
    let gone = stale.snapshot_and_clear(0..LEN);
    assert!(matches!(gone, Err(MapError::NotLogged { .. })), "{gone:?}");
    drop(stale);
    assert_eq!(taken(&mut log), [0]);
}

/// Clears nothing, or stops no log, while it is told so; notes what it is asked for.
#[derive(Default)]
struct Stubborn {
    clears: AtomicBool,
    stops: AtomicBool,
    commits: AtomicUsize,
    notes: Mutex<Vec<String>>,
}

impl MemoryListener for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let global = change.global_log.is_some_and(|log| log.new.is_empty());
        let region = change.log_changed.iter().any(|change| change.section.log().is_empty());
        let stops = global || region;
        if stops && self.stops.load(Ordering::Relaxed) { Err("no".into()) } else { Ok(()) }
    }

    fn sync(&self, section: &Section) -> Result<(), ListenerError> {
        self.notes.lock().unwrap().push(format!("sync {}", section.name()));
        Ok(())
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        self.notes.lock().unwrap().push(format!("clear {} {bytes:x?}", section.name()));
        let refused = self.clears.load(Ordering::Relaxed) && bytes.start >= 0x8000;
        if refused { Err("no".into()) } else { Ok(()) }
    }
}

fn with_listener(map: &Arc<MemoryMap>, ram: &[RegionId]) -> Arc<Stubborn> {
    let root = map.transaction(|map| {
        let root = map.container("root", 1 << 48)?;
        for (n, ram) in (0..).zip(ram) {
            map.add_subregion(root, n << 40, *ram)?;
        }
        Ok(root)
    });
    let stubborn = Arc::new(Stubborn::default());
    let space = map.address_space("memory", root.unwrap()).unwrap();
    map.add_listener(&space, stubborn.clone()).unwrap();
    stubborn
}

/// Pages that cannot be re-armed were not dealt with: a later write to them would not be reported.
#[test]
fn a_harvest_that_cannot_rearm_its_pages_gives_them_back() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let stubborn = with_listener(&map, &[*region]);
    let mut log = map.claim_global_log(MIGRATION).unwrap();
    let page = block.page_size().bytes();
    let pages = [1, 0x8000 / page, 0x8000 / page + 4];
    pages.iter().for_each(|n| block.write(n * page, &[1]).unwrap());
    stubborn.clears.store(true, Ordering::Relaxed);
    let mut visited = Vec::new();
    let mut visit = |log: &mut GlobalLogClaim| {
        log.visit_runs(block, 0, |run| {
            visited.push(run.start);
            ControlFlow::<()>::Continue(())
        })
    };
    assert!(matches!(visit(&mut log), Err(MapError::Sync { .. })));
    assert!(matches!(log.snapshot_and_clear(block, 0x8000..LEN), Err(MapError::Sync { .. })));
    stubborn.clears.store(false, Ordering::Relaxed);
    let _ = visit(&mut log).unwrap();
    assert_eq!(visited, pages);
}

/// Its client stays taken, as the log goes on; the next change tries again.
#[test]
fn a_log_that_a_listener_does_not_stop_is_stopped_later() {
    let (map, ram) = map_with(&["ram"]);
    let stubborn = with_listener(&map, &[ram[0].0]);
    let log = map.claim_global_log(MIGRATION).unwrap();
    stubborn.stops.store(true, Ordering::Relaxed);
    drop(log);
    assert_eq!(enabled(&ram[0].1), ClientSet::EMPTY.with(MIGRATION));
    assert!(is_claimed(map.claim_global_log(MIGRATION)));
    stubborn.stops.store(false, Ordering::Relaxed);
    map.transaction(|_| Ok(())).unwrap();
    assert_eq!(enabled(&ram[0].1), ClientSet::EMPTY);
    // A claim tries again, too.
    let log = map.claim_global_log(MIGRATION).unwrap();
    stubborn.stops.store(true, Ordering::Relaxed);
    drop(log);
    stubborn.stops.store(false, Ordering::Relaxed);
    drop(map.claim_global_log(MIGRATION).unwrap());
}

/// Each change of the map tries again, not those of its tree alone.
#[test]
fn a_space_or_a_listener_that_comes_stops_refused_logs() {
    for comes in ["a space", "a listener"] {
        let (map, ram) = map_with(&["ram"]);
        let (region, block) = &ram[0];
        let space = map.address_space("empty", *region).unwrap();
        let stubborn = with_listener(&map, &[*region]);
        let log = map.claim_global_log(MIGRATION).unwrap();
        stubborn.stops.store(true, Ordering::Relaxed);
        drop(log);
        assert_eq!(enabled(block), ClientSet::EMPTY.with(MIGRATION));
        stubborn.stops.store(false, Ordering::Relaxed);
        match comes {
            "a space" => drop(map.address_space("another", *region).unwrap()),
            _ => map.add_listener(&space, Arc::new(Stubborn::default())).unwrap(),
        }
        assert_eq!(enabled(block), ClientSet::EMPTY, "{comes}");
    }
}

#[test]
fn a_refused_log_ends_with_its_map() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = ram.into_iter().next().unwrap();
    let stubborn = with_listener(&map, &[region]);
    let log = map.claim_global_log(MIGRATION).unwrap();
    stubborn.stops.store(true, Ordering::Relaxed);
    drop(log);
    assert_eq!(enabled(&block), ClientSet::EMPTY.with(MIGRATION));
    drop(map);
    assert_eq!(enabled(&block), ClientSet::EMPTY);
}

/// Stops no log of VGA.
struct KeepsVga {
    refuses_all: AtomicBool,
}

impl MemoryListener for KeepsVga {
    fn name(&self) -> &str {
        "keeps vga"
    }

    fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
        let stops = |client| {
            let stops = change.log_changed.iter();
            stops
                .filter(|change| !change.section.log().contains(client))
                .any(|change| change.old.contains(client))
        };
        let refused = stops(MIGRATION) && self.refuses_all.load(Ordering::Relaxed);
        if stops(VGA) || refused { Err("no".into()) } else { Ok(()) }
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }
}

/// A log that cannot be stopped keeps no other one on.
#[test]
fn of_refused_logs_those_that_can_stop_do() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let space = map.address_space("memory", *region).unwrap();
    let keeps = Arc::new(KeepsVga { refuses_all: AtomicBool::new(true) });
    map.add_listener(&space, keeps.clone()).unwrap();
    let logs = [VGA, MIGRATION].map(|client| map.claim_log(*region, client).unwrap());
    logs.into_iter().for_each(drop);
    assert_eq!(enabled(block), ClientSet::EMPTY.with(VGA).with(MIGRATION));
    keeps.refuses_all.store(false, Ordering::Relaxed);
    map.transaction(|_| Ok(())).unwrap();
    assert_eq!(enabled(block), ClientSet::EMPTY.with(VGA));
}

/// Each harvest of a region's log asks for its own block, and re-arms its own pages.
#[cfg(target_pointer_width = "64")] // two blocks of 3 GiB
#[test]
fn each_harvest_syncs_and_rearms_the_pages_of_its_block() {
    let map = MemoryMap::new();
    let blocks = ["own", "other"].map(|id| RamBlock::anonymous(id, 3 << 30).unwrap());
    let ram = blocks
        .each_ref()
        .map(|block| map.transaction(|map| map.ram(block.id(), block.clone())).unwrap());
    let listener = with_listener(&map, &ram);
    let mut log = map.claim_log(ram[0], VGA).unwrap();
    let _other = map.claim_log(ram[1], VGA).unwrap();
    let page = blocks[0].page_size().bytes();
    let noted = || std::mem::take(&mut *listener.notes.lock().unwrap());
    noted();
    log.snapshot_and_clear(page + 5..2 * page + 1).unwrap().commit();
    assert_eq!(noted(), ["sync own".to_owned(), format!("clear own {:x?}", page..3 * page)]);
    assert_eq!(log.move_to(&mut PageSet::new(blocks[0].pages()).unwrap()).unwrap(), 0);
    assert_eq!(noted(), ["sync own"]);
    let mut words = vec![0; usize::try_from(blocks[0].pages().div_ceil(64)).unwrap()];
    assert_eq!(log.move_into(&mut words).unwrap(), 0);
    assert_eq!(noted(), ["sync own"]);
    log.clear(0x5000..0x7000).unwrap();
    assert_eq!(noted(), ["clear own 5000..7000"]);
    // A long run is re-armed in parts, and all of it.
    blocks[0].dirty().mark(page, (3 << 30) - page);
    let visited = log.visit_runs(0, |_| ControlFlow::<()>::Continue(())).unwrap();
    assert_eq!(visited, ControlFlow::Continue(()));
    let mut notes = noted().into_iter();
    assert_eq!(notes.next().unwrap(), "sync own");
    let mut next = page;
    for part in notes {
        let range = part.strip_prefix("clear own ").unwrap().split_once("..").unwrap();
        let [start, end] = [range.0, range.1].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        assert_eq!(start, next);
        next = end;
    }
    assert_eq!(next, 3 << 30);
    // Nor does the log of all RAM ask for other blocks.
    drop(log);
    let mut all = map.claim_global_log(MIGRATION).unwrap();
    noted();
    all.snapshot_and_clear(&blocks[1], 0..page).unwrap().commit();
    assert_eq!(noted(), [format!("clear other {:x?}", 0..page)]);
}

/// Ranges that the block does not have are errors, as at the block, and re-arm nothing.
#[test]
#[allow(clippy::reversed_empty_ranges)]
fn a_range_that_the_block_does_not_have_is_an_error() {
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let page = block.page_size().bytes();
    let listener = with_listener(&map, &[*region]);
    let mut log = map.claim_log(*region, VGA).unwrap();
    let mut all = map.claim_global_log(MIGRATION).unwrap();
    block.write(0, &[1]).unwrap();
    let no_range = |result: Result<(), MapError>, range: &Range<u64>| {
        let error = result.expect_err(&format!("{range:x?}"));
        assert!(matches!(error, MapError::ByteRange { .. }), "{range:x?}: {error}");
        error.to_string()
    };
    let outside = [5 * page..3 * page, 5..3, LEN..LEN + page, 2 * LEN..3 * LEN, 0..u64::MAX];
    for range in &outside {
        no_range(log.snapshot_and_clear(range.clone()).map(drop), range);
        no_range(all.snapshot_and_clear(block, range.clone()).map(drop), range);
    }
    let parts = [1..page, 0..1, page + 1..page + 2, LEN - 1..LEN, 5..5];
    for range in outside.iter().chain(&parts) {
        no_range(log.clear(range.clone()), range);
        no_range(all.clear(block, range.clone()), range);
    }
    let error = no_range(log.clear(0..1), &(0..1));
    assert_eq!(error, "Bytes 0x0..0x1 of block \"ram\", which has 0x100000: not whole pages");
    let notes = std::mem::take(&mut *listener.notes.lock().unwrap());
    assert!(!notes.iter().any(|note| note.starts_with("clear")), "{notes:?}");

    // Empty ones are none, nor is all of the block.
    for range in [0..0, LEN..LEN, 0..LEN] {
        log.clear(range.clone()).unwrap();
        all.clear(block, range).unwrap();
    }
    assert_eq!(taken(&mut log), [0]);
    assert_eq!(taken_of(&mut all, block), [0]);
}

/// A block that is not in the map has no log there to re-arm.
#[test]
fn a_log_rearms_no_block_that_it_does_not_have() {
    let (map, ram) = map_with(&["ram"]);
    let mut log = map.claim_log(ram[0].0, VGA).unwrap();
    let mut all = map.claim_global_log(MIGRATION).unwrap();
    let stranger = all.clear(&block("stranger"), 0..LEN);
    assert!(matches!(stranger, Err(MapError::NotLogged { .. })), "{stranger:?}");
    map.transaction(|map| map.remove(ram[0].0)).unwrap();
    for gone in [log.clear(0..LEN), all.clear(&ram[0].1, 0..LEN)] {
        assert!(matches!(gone, Err(MapError::NotLogged { .. })), "{gone:?}");
    }
}

/// However many logs a listener does not stop, each change of the map tries each once more.
#[test]
fn logs_that_cannot_be_stopped_cost_a_try_each() {
    let ids: Vec<String> = (0..16).map(|n| format!("ram {n}")).collect();
    let (map, ram) = map_with(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let regions: Vec<_> = ram.iter().map(|(region, _)| *region).collect();
    let listener = with_listener(&map, &regions);
    let logs: Vec<_> = regions.iter().map(|id| map.claim_log(*id, VGA).unwrap()).collect();
    let tries = || listener.commits.swap(0, Ordering::Relaxed);
    listener.stops.store(true, Ordering::Relaxed);
    tries();
    for log in logs {
        drop(log);
        assert!(tries() <= 2, "a try, and perhaps the inverse");
    }
    map.transaction(|_| Ok(())).unwrap();
    assert!(tries() <= 2 * 17);
    listener.stops.store(false, Ordering::Relaxed);
    map.transaction(|_| Ok(())).unwrap();
    assert!(ram.iter().all(|(_, block)| enabled(block).is_empty()));
}

/// Harvests a block as it follows a change, and notes what is re-armed.
struct Harvests {
    log: Mutex<GlobalLogClaim>,
    block: Arc<RamBlock>,
    found: Mutex<Vec<u64>>,
    cleared: Mutex<Vec<(String, Range<u64>)>>,
}

impl MemoryListener for Harvests {
    fn name(&self) -> &str {
        "harvests"
    }

    fn commit(&self, _: &ViewChange) -> Result<(), ListenerError> {
        let log = &mut *self.log.lock().unwrap();
        // It is not there yet as this listener is registered.
        if let Ok(harvest) = log.snapshot_and_clear(&self.block, 0..LEN) {
            self.found.lock().unwrap().push(harvest.commit().count());
        }
        Ok(())
    }

    fn sync(&self, _: &Section) -> Result<(), ListenerError> {
        Ok(())
    }

    fn log_clear(&self, section: &Section, bytes: Range<u64>) -> Result<(), ListenerError> {
        self.cleared.lock().unwrap().push((section.name().to_owned(), bytes));
        Ok(())
    }
}

/// Also for a harvest while the commit that brings it is under way, and only once. Guests may write
/// through its section before the view is published, so this is re-armed, too.
#[test]
fn ram_that_joins_is_dirty_for_the_first_harvest() {
    let (map, ram) = map_with(&["ram"]);
    let root = map.transaction(|map| {
        let root = map.container("root", 1 << 32)?;
        map.add_subregion(root, 0, ram[0].0)?;
        Ok(root)
    });
    let (root, late) = (root.unwrap(), block("late"));
    let space = map.address_space("memory", root).unwrap();
    let log = Mutex::new(map.claim_global_log(MIGRATION).unwrap());
    let (found, cleared) = Default::default();
    let harvests = Arc::new(Harvests { log, block: late.clone(), found, cleared });
    map.add_listener(&space, harvests.clone()).unwrap();
    let joined = map.transaction(|map| {
        let region = map.ram("late", late.clone())?;
        map.add_subregion(root, 1 << 30, region)
    });
    joined.unwrap();
    assert_eq!(*harvests.found.lock().unwrap(), [late.pages()]);
    assert_eq!(*harvests.cleared.lock().unwrap(), [("late".to_owned(), 0..LEN)]);
    assert_eq!(taken_of(&mut harvests.log.lock().unwrap(), &late), [0; 0]);
}

/// RAM that joins is new to the logs of all RAM, and to nobody else.
#[test]
fn ram_that_joins_is_dirty_for_the_logs_of_all_ram() {
    let map = MemoryMap::new();
    let mut all = map.claim_global_log(MIGRATION).unwrap();
    let joins = block("joins");
    let mine = joins.dirty().claim("mine").unwrap();
    map.transaction(|map| map.ram("joins", joins.clone())).unwrap();
    assert!(mine.snapshot_and_clear(0..joins.pages()).unwrap().is_empty());
    assert_eq!(taken_of(&mut all, &joins).len() as u64, joins.pages());
}

/// Ranges of every kind mean what they mean of a slice.
#[test]
fn a_range_of_any_kind_is_that_of_a_slice() {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let (map, ram) = map_with(&["ram"]);
    let (region, block) = &ram[0];
    let page = block.page_size().bytes();
    let mut log = map.claim_log(*region, VGA).unwrap();
    let mut all = map.claim_global_log(MIGRATION).unwrap();
    let offsets: Vec<u64> = (0..LEN).collect();
    let starts = [Unbounded, Included(2 * page), Excluded(2 * page - 1)];
    let ends = [Unbounded, Included(7 * page - 1), Excluded(7 * page), Included(LEN - 1)];
    for bytes in starts.into_iter().flat_map(|start| ends.map(|end| (start, end))) {
        let in_slice = |bound: Bound<u64>| bound.map(|offset| usize::try_from(offset).unwrap());
        let span = &offsets[(in_slice(bytes.0), in_slice(bytes.1))];
        let expected: Vec<u64> = (span[0] / page..=span[span.len() - 1] / page).collect();
        block.write(0, &vec![1; usize::try_from(LEN).unwrap()]).unwrap();
        let pages = |harvest: Harvest| harvest.commit().pages().collect::<Vec<_>>();
        assert_eq!(pages(log.snapshot_and_clear(bytes).unwrap()), expected, "{bytes:?}");
        assert_eq!(pages(all.snapshot_and_clear(block, bytes).unwrap()), expected, "{bytes:?}");
        log.clear(bytes).unwrap();
    }
    for last in [LEN, u64::MAX] {
        log.snapshot_and_clear(..=last).unwrap_err();
        log.snapshot_and_clear((Excluded(last), Unbounded)).unwrap_err();
    }
}
