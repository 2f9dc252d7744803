//! Writers that log by guest address.
#![cfg(all(target_os = "linux", feature = "vm-memory"))]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::{
    ExternalDirtyLog, ExternalDirtyLogListener, FlatView, ListenerError, MapError, MemoryListener,
    MemoryMap, VhostLog,
};
use proptest::prelude::*;
use ram_block::vm_memory::Bytes;
use ram_block::{DirtyClient, PageSize, RamBlock};

const CLIENTS: [DirtyClient; 2] = [DirtyClient::VGA, DirtyClient::MIGRATION];
const LEN: u64 = 1 << 20;

/// A DMA engine with a log of its own grain.
struct Engine {
    page: PageSize,
    dirty: Mutex<BTreeSet<u64>>,
    broken: Mutex<bool>,
}

impl Engine {
    fn new(page: u64) -> Self {
        let page = PageSize::new(page).unwrap();
        Self { page, dirty: Mutex::default(), broken: Mutex::default() }
    }

    fn write(&self, address: u64, len: u64) {
        self.dirty.lock().unwrap().extend(self.page.pages_spanned(address, len));
    }
}

impl ExternalDirtyLog for Engine {
    fn name(&self) -> &str {
        "engine"
    }

    fn page_size(&self) -> PageSize {
        self.page
    }

    fn fetch_and_clear(
        &self,
        pages: Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ListenerError> {
        if *self.broken.lock().unwrap() {
            return Err("the engine is on fire".into());
        }
        let mut dirty = self.dirty.lock().unwrap();
        let words: BTreeSet<u64> = dirty.range(pages).map(|page| page / 64).collect();
        for word in words {
            let bits: Vec<u64> = dirty.range(word * 64..word * 64 + 64).copied().collect();
            let mask = bits.iter().fold(0, |mask, page| mask | 1 << (page % 64));
            bits.iter().for_each(|page| assert!(dirty.remove(page)));
            found(word * 64, mask);
        }
        Ok(())
    }
}

/// The pages of blocks that a store of whole log pages may have changed, by what the
/// view says: (block's number, page).
fn changed(
    view: &FlatView,
    blocks: &[Arc<RamBlock>; 2],
    page: PageSize,
    store: Range<u64>,
) -> BTreeSet<(usize, u64)> {
    let mut found = BTreeSet::new();
    for log_page in page.pages_spanned(store.start, store.end - store.start) {
        for address in (log_page * page.bytes()..(log_page + 1) * page.bytes()).step_by(512) {
            let Some(section) = view.section_at(address) else { continue };
            let Some(ram) = section.ram() else { continue };
            let block = blocks.iter().position(|block| Arc::ptr_eq(block, ram)).unwrap();
            let offset = section.offset() + (address - section.start());
            found.insert((block, ram.page_size().page_of(offset)));
        }
    }
    found
}

#[derive(Clone, Debug)]
enum Step {
    Store { address: u64, len: u64 },
    Show { window: usize, shown: bool },
    Move { window: usize, to: u64 },
    Sync,
    Harvest,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6 * LEN, prop_oneof![1..600u64, 1..LEN])
            .prop_map(|(address, len)| Step::Store { address, len }),
        2 => (0..3usize, any::<bool>()).prop_map(|(window, shown)| Step::Show { window, shown }),
        2 => (0..3usize, 0..8 * LEN / 512)
            .prop_map(|(window, to)| Step::Move { window, to: to * 512 }),
        1 => Just(Step::Sync),
        1 => Just(Step::Harvest),
    ]
}

proptest! {
    #![proptest_config(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever the log's grain, and however the map changes: each store is found, once,
    /// by every client, in the block that was there when it was made; while the map stays, no other
    /// page is.
    #[test]
    fn stores_reach_every_client_in_the_map_that_they_were_made_in(
        page in prop_oneof![Just(512u64), Just(4096), Just(65536), Just(2 << 20)],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let blocks = ["a", "b"].map(|id| RamBlock::anonymous(id, LEN).unwrap());
        let map = MemoryMap::new();
        let (root, windows) = map.transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let a = map.ram("a", blocks[0].clone())?;
            let b = map.ram("b", blocks[1].clone())?;
            let windows = [
                map.alias("whole", a, 0, LEN.into())?,
                map.alias("part", b, 0x8200, 0x1_0600)?,
                map.alias("other", b, 0, LEN.into())?,
            ];
            map.add_subregion_overlap(root, 0, windows[0], 0)?;
            map.add_subregion_overlap(root, 0x2600, windows[1], 1)?;
            map.add_subregion_overlap(root, LEN + 512, windows[2], 2)?;
            Ok((root, windows))
        }).unwrap();
        let mut logs = CLIENTS.map(|client| map.claim_global_log(client).unwrap());
        let space = map.address_space("space", root).unwrap();
        let listener = ExternalDirtyLogListener::new(Engine::new(page));
        let engine = listener.log();
        map.add_listener(&space, listener.clone()).unwrap();
        let mut expected = BTreeSet::new();
        // A page of the log that has other memory next to a hole may be found for what
        // came into the hole.
        let mut changed_map = false;
        let mut harvest = || {
            logs.each_mut().map(|log| {
                let mut found = BTreeSet::new();
                for (number, block) in blocks.iter().enumerate() {
                    let pages = log.snapshot_and_clear(block, 0..block.len());
                    found.extend(pages.unwrap().commit().pages().map(|page| (number, page)));
                }
                found
            })
        };
        for step in steps {
            changed_map |= matches!(step, Step::Show { .. } | Step::Move { .. });
            match step {
                Step::Store { address, len } => {
                    engine.write(address, len);
                    expected.extend(
                        changed(&space.view(), &blocks, engine.page, address..address + len));
                }
                Step::Show { window, shown } => {
                    map.transaction(|map| map.set_enabled(windows[window], shown)).unwrap();
                }
                Step::Move { window, to } => {
                    map.transaction(|map| map.set_address(windows[window], to)).unwrap();
                }
                Step::Sync => map.sync_all_dirty_logs().unwrap(),
                Step::Harvest => {
                    map.sync_all_dirty_logs().unwrap();
                    let found = harvest();
                    prop_assert_eq!(&found[0], &found[1]);
                    prop_assert!(expected.is_subset(&found[0]), "{expected:?} but {found:?}");
                    if !changed_map {
                        prop_assert_eq!(&expected, &found[0]);
                    }
                    expected.clear();
                    changed_map = false;
                    // Stores to where nothing was are nobody's, also when something comes.
                    engine.dirty.lock().unwrap().clear();
                }
            }
        }
        map.sync_all_dirty_logs().unwrap();
        let found = harvest();
        prop_assert_eq!(&found[0], &found[1]);
        prop_assert!(expected.is_subset(&found[0]), "{expected:?} but {found:?}");
    }
}

#[test]
fn a_log_that_cannot_be_read_loses_nothing() {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    let (root, region) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(root, 0, region)?;
            Ok((root, region))
        })
        .unwrap();
    let mut log = map.claim_log(region, DirtyClient::VGA).unwrap();
    let space = map.address_space("space", root).unwrap();
    let listener = ExternalDirtyLogListener::new(Engine::new(4096));
    map.add_listener(&space, listener.clone()).unwrap();
    let engine = listener.log();
    engine.write(0x5000, 1);
    *engine.broken.lock().unwrap() = true;
    for refused in [map.sync_all_dirty_logs(), log.snapshot_and_clear(0..LEN).map(drop)] {
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, MapError::Sync { listener, .. } if listener == "engine"));
        assert_eq!(
            std::error::Error::source(&refused).unwrap().to_string(),
            "the engine is on fire"
        );
    }
    // Nor can its memory go, as long as nobody knows what was written.
    let refused = map.transaction(|map| map.del_subregion(region)).unwrap_err();
    assert!(matches!(refused, MapError::Refused { .. }), "{refused}");
    let as_listener: Arc<dyn MemoryListener> = listener.clone();
    assert!(map.remove_listener(&space, &as_listener).is_err());
    *engine.broken.lock().unwrap() = false;
    assert!(map.remove_listener(&space, &as_listener).unwrap());
    let harvest = log.snapshot_and_clear(0..LEN).unwrap();
    let page = ram.page_size().page_of(0x5000);
    assert_eq!(harvest.commit().pages().collect::<Vec<_>>(), [page]);
}

#[test]
fn a_vhost_log_is_a_bit_for_each_4_kib_of_guest_address() {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 8 << 20).unwrap();
    let root = map
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(root, 1 << 32, region)?;
            Ok(root)
        })
        .unwrap();
    let mut harvests = map.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let space = map.address_space("space", root).unwrap();
    let log = VhostLog::new("net0", space.view().ram()).unwrap();
    assert!(log.block().len() * 8 >= ((1 << 32) + (8 << 20)) / 4096);
    let bits = log.block().clone();
    map.add_listener(&space, ExternalDirtyLogListener::new(log)).unwrap();
    // As a back end sets them: in bytes.
    for page in [0u64, 7, 8, 63, 64, 2047] {
        let number = (1 << 20) + page;
        let at = usize::try_from(number / 8).unwrap();
        let byte: u8 = bits.as_slice().read_obj(at).unwrap();
        bits.as_slice().write_obj(byte | 1 << (number % 8), at).unwrap();
    }
    map.sync_all_dirty_logs().unwrap();
    let pages = harvests.snapshot_and_clear(&ram, 0..ram.len()).unwrap();
    let size = ram.page_size().bytes();
    let expected: BTreeSet<u64> =
        [0u64, 7, 8, 63, 64, 2047].iter().map(|page| page * 4096 / size).collect();
    assert_eq!(pages.commit().pages().collect::<BTreeSet<_>>(), expected);
    let mut rest = vec![0; usize::try_from(bits.len()).unwrap()];
    bits.read(0, &mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0), "bits were not taken");
}

/// Others sync at any time, also while the source comes or goes: what it cannot resolve stays
/// in its log.
#[test]
fn what_is_logged_while_nobody_knows_its_map_stays_logged() {
    let memory = MemoryMap::new();
    let block = RamBlock::anonymous("ram", LEN).unwrap();
    let placed = memory.transaction(|map| {
        let root = map.container("root", 1 << 32)?;
        let ram = map.ram("ram", block.clone())?;
        map.add_subregion(root, 0, ram)?;
        Ok((root, ram))
    });
    let (root, ram) = placed.unwrap();
    let _log = memory.claim_log(ram, DirtyClient::MIGRATION).unwrap();
    let space = memory.address_space("space", root).unwrap();
    let source = ExternalDirtyLogListener::new(Engine::new(4096));
    let section = space.view().section_at(0).unwrap().clone();
    source.log().write(0x3000, 1);
    source.sync(&section).unwrap();
    memory.add_listener(&space, source.clone()).unwrap();
    memory.sync_dirty_log(ram).unwrap();
    let page = block.page_size().page_of(0x3000);
    assert!(block.dirty().is_dirty(DirtyClient::MIGRATION, page));

    let listener: Arc<dyn MemoryListener> = source.clone();
    memory.remove_listener(&space, &listener).unwrap();
    source.log().write(0x5000, 1);
    source.sync(&section).unwrap();
    assert_eq!(*source.log().dirty.lock().unwrap(), BTreeSet::from([5]));
}
