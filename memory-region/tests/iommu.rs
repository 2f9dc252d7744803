//! Accesses that go on elsewhere.
#![cfg(all(target_os = "linux", feature = "vm-memory"))]

use std::sync::{Arc, Mutex, OnceLock};

use memory_region::{
    AccessError, AddressSpace, GlobalLogClaim, Iommu, ListenerError, MemoryListener, MemoryMap,
    Section, Translation, ViewChange,
};
use proptest::prelude::*;
use ram_block::vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use ram_block::{DirtyClient, RamBlock};

const PAGE: u64 = 0x100;
const PAGES: usize = 16;

/// A page table: where each page is, and whether it can be written.
#[derive(Default)]
struct Table {
    space: OnceLock<Arc<AddressSpace>>,
    pages: Mutex<[Option<(u64, bool)>; PAGES]>,
    faults: Mutex<Vec<(u64, bool)>>,
}

impl Iommu for Table {
    fn translate(&self, offset: u64, write: bool) -> Translation {
        let page = usize::try_from(offset / PAGE).ok();
        let entry = page.and_then(|page| self.pages.lock().unwrap().get(page).copied().flatten());
        let len = PAGE - offset % PAGE;
        match entry {
            Some((to, writable)) if writable || !write => {
                Translation::to(self.space.get().unwrap(), to + offset % PAGE, len)
            }
            _ => {
                self.faults.lock().unwrap().push((offset, write));
                Translation::nowhere(len)
            }
        }
    }
}

struct Bus {
    map: Arc<MemoryMap>,
    ram: Arc<RamBlock>,
    log: GlobalLogClaim,
    table: Arc<Table>,
    device: Arc<AddressSpace>,
}

const LEN: u64 = 0x1_0000;

/// A device's space of 16 pages, at address `at`, and a system with RAM.
fn bus(at: u64) -> Bus {
    let (map, table) = (MemoryMap::new(), Arc::new(Table::default()));
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    let (system, device) = map
        .transaction(|map| {
            let system = map.container("system", 1 << 32)?;
            let ram = map.ram("ram", ram.clone())?;
            map.add_subregion(system, 0x10_0000, ram)?;
            let device = map.container("device", 1 << 64)?;
            let pages = map.iommu("pages", u128::from(PAGE) * PAGES as u128, table.clone())?;
            map.add_subregion(device, at, pages)?;
            Ok((system, device))
        })
        .unwrap();
    let log = map.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let system = map.address_space("system", system).unwrap();
    assert!(table.space.set(system).is_ok());
    let device = map.address_space("device", device).unwrap();
    Bus { map, ram, log, table, device }
}

proptest! {
    #![proptest_config(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Each byte is where its page is, or nowhere; and what was written is dirty there.
    #[test]
    fn bytes_go_where_their_pages_are(
        pages in prop::collection::vec(prop::option::weighted(0.8, (0..LEN / PAGE, any::<bool>())),
            PAGES),
        (start, len) in (0..PAGE * PAGES as u64, 1..1200usize),
        top in any::<bool>(),
    ) {
        let base = if top { u64::MAX - (PAGE * PAGES as u64 - 1) } else { 0x5000 };
        let Bus { map: _map, ram, mut log, table, device } = bus(base);
        for (entry, page) in table.pages.lock().unwrap().iter_mut().zip(&pages) {
            *entry = page.map(|(to, writable)| (0x10_0000 + to * PAGE, writable));
        }
        let before: Vec<u8> = (0..LEN).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
            .collect();
        ram.write(0, &before).unwrap();
        log.snapshot_and_clear(&ram, 0..LEN).unwrap().commit();
        let place = |n: usize| {
            let at = start + n as u64;
            let page = pages.get(usize::try_from(at / PAGE).unwrap()).copied().flatten();
            page.map(|(to, writable)| (usize::try_from(to * PAGE + at % PAGE).unwrap(), writable))
        };
        let mut data = vec![0; len];
        let read = device.read(base + start, &mut data);
        for (n, byte) in data.iter().enumerate() {
            prop_assert_eq!(*byte, place(n).map_or(0xff, |(at, _)| before[at]), "byte {}", n);
        }
        prop_assert_eq!(read.is_ok(), (0..len).all(|n| place(n).is_some()));

        let data: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0] | 1).collect();
        let written = device.write(base + start, &data);
        let mut expected = before;
        let mut dirty = vec![];
        for (n, byte) in data.iter().enumerate() {
            if let Some((at, true)) = place(n) {
                expected[at] = *byte;
                dirty.push(ram.page_size().page_of(at as u64));
            }
        }
        prop_assert_eq!(written.is_ok(), (0..len)
            .all(|n| place(n).is_some_and(|(_, writable)| writable)));
        let mut after = vec![0; expected.len()];
        ram.read(0, &mut after).unwrap();
        prop_assert!(after == expected);
        let found = log.snapshot_and_clear(&ram, 0..LEN).unwrap()
            .commit();
        prop_assert!((0..ram.pages()).all(|page| found.is_dirty(page) == dirty.contains(&page)));
        // A fault is for a page, not for each byte of it.
        prop_assert!(table.faults.lock().unwrap().len() <= 2 * (len / 0x100 + 2));
    }
}

#[test]
fn what_leads_nowhere_says_so() {
    let Bus { map, table, device, .. } = bus(0x5000);
    table.pages.lock().unwrap()[1] = Some((0x10_0000, true));
    let mut data = [0; 8];
    let error = device.read(0x5200, &mut data).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Access of 8 bytes at 0x5200: \"pages\" has no translation of 0x200"
    );
    assert_eq!(*table.faults.lock().unwrap(), [(0x200, false)]);
    // It is known by its kind, and is no memory.
    let view = device.view();
    assert!(view.section_at(0x5000).unwrap().ram().is_none());
    assert!(device.memory().read_obj::<u8>(GuestAddress(0x5100)).is_err());
    assert!(map.flat_views().to_string().contains("(prio 0, iommu): pages"));
    assert!(map.mtree().to_string().contains("(prio 0, iommu): pages"));
}

/// Two stages are a translation; a circle is none, and ends.
#[test]
fn stages_follow_one_another_but_not_in_circles() {
    /// The same addresses in another space.
    #[derive(Default)]
    struct Through(OnceLock<Arc<AddressSpace>>);
    impl Iommu for Through {
        fn translate(&self, offset: u64, _: bool) -> Translation {
            Translation::to(self.0.get().unwrap(), offset, u64::MAX - offset)
        }
    }
    let map = MemoryMap::new();
    let stage = |to: Option<&Arc<AddressSpace>>| {
        let through = Arc::new(Through::default());
        let region = map.transaction(|map| map.iommu("stage", 1 << 64, through.clone())).unwrap();
        let space = map.address_space("stage", region).unwrap();
        assert!(through.0.set(to.unwrap_or(&space).clone()).is_ok());
        space
    };
    let ram = RamBlock::anonymous("ram", LEN).unwrap();
    let ram = map.transaction(|map| map.ram("ram", ram)).unwrap();
    let mut space = map.address_space("ram", ram).unwrap();
    for _ in 0..8 {
        space = stage(Some(&space));
        space.write(7, &[1, 2, 3]).unwrap();
    }
    space = stage(Some(&space));
    let error = space.write(7, &[1]).unwrap_err();
    assert!(matches!(error, AccessError::Untranslated { offset: 7, .. }), "{error}");
    let circle = stage(None);
    let mut data = [0; 100];
    let error = circle.read(5, &mut data).unwrap_err();
    assert!(matches!(error, AccessError::Untranslated { offset: 5, .. }), "{error}");
    assert_eq!(data, [0xff; 100]);
}

/// Listeners hear of the region, which has no memory to map nor to log.
#[test]
fn listeners_hear_of_it() {
    #[derive(Default)]
    struct Hears(Mutex<Vec<String>>);
    impl MemoryListener for Hears {
        fn name(&self) -> &str {
            "hears"
        }

        fn commit(&self, change: &ViewChange) -> Result<(), ListenerError> {
            let mut heard = self.0.lock().unwrap();
            heard.extend(change.added.iter().map(|section| format!("+{section:?}")));
            Ok(())
        }

        fn sync(&self, section: &Section) -> Result<(), ListenerError> {
            Err(format!("asked for {section:?}").into())
        }
    }
    let Bus { map, device, .. } = bus(0);
    let hears = Arc::new(Hears::default());
    map.add_listener(&device, hears.clone()).unwrap();
    map.sync_all_dirty_logs().unwrap();
    assert_eq!(
        *hears.0.lock().unwrap(),
        ["+0x0000000000000000-0x0000000000000fff iommu pages @0x0"]
    );
}
