//! A TLB does what the address space does, whatever is committed, harvested and watched meanwhile.

use std::collections::BTreeSet;
#[cfg(not(target_family = "wasm"))]
use std::sync::OnceLock;
#[cfg(not(target_family = "wasm"))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
#[cfg(not(target_family = "wasm"))]
use std::thread;

use memory_region::{AccessError, AddressSpace, MemoryMap, MmioDevice, RegionId, Tlb};
use proptest::prelude::*;
use ram_block::{CodeWatch, DirtyClaim, RamBlock};

const PAGE: u64 = 4096;
/// Pages of the first block, which is at 0.
const PAGES: u64 = 16;
const WINDOW: u64 = 0x3_0000;
const ROM: u64 = 0x4_0000;
const REGISTERS: u64 = 0x5_0800;
const SECOND: u64 = 0x6_0000;

/// Registers that are plain memory.
struct Registers(Mutex<[u8; 256]>);

impl MmioDevice for Registers {
    fn read(&self, offset: u64, size: usize) -> u64 {
        let at = usize::try_from(offset).unwrap();
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.0.lock().unwrap()[at..at + size]);
        u64::from_le_bytes(value)
    }

    fn write(&self, offset: u64, size: usize, value: u64) {
        let at = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// RAM with a hole in one page, a window on a part of it that moves, ROM, registers, and a second
/// block that comes and goes.
struct Machine {
    map: Arc<MemoryMap>,
    root: RegionId,
    window: Option<RegionId>,
    second: RegionId,
    has_second: bool,
    /// Whether banks are switched by a commit that renders the map.
    renders: bool,
    ram: RegionId,
    blocks: [Arc<RamBlock>; 3],
    space: Arc<AddressSpace>,
    claims: [Option<DirtyClaim>; 3],
    watch: CodeWatch,
    reported: Arc<Mutex<Vec<u64>>>,
}

impl Machine {
    fn new() -> Self {
        let map = MemoryMap::new();
        let block = |id: &str, len| RamBlock::anonymous(id, len).unwrap();
        let blocks = [block("ram", PAGES * PAGE), block("rom", PAGE), block("second", 2 * PAGE)];
        blocks[1].write(0, &(0..=255).collect::<Vec<u8>>()).unwrap();
        let (root, ram, second) = map
            .transaction(|map| {
                let root = map.container("system", 1 << 20)?;
                let ram = map.ram("ram", blocks[0].clone())?;
                let rom = map.rom("rom", blocks[1].clone())?;
                let second = map.ram("second", blocks[2].clone())?;
                let registers =
                    map.mmio("registers", 256, Arc::new(Registers(Mutex::new([0; 256]))))?;
                // Splits page 3 of the RAM.
                let split = map.alias("split", second, 0x800, 0x100)?;
                map.add_subregion(root, 0, ram)?;
                map.add_subregion(root, ROM, rom)?;
                map.add_subregion(root, REGISTERS, registers)?;
                map.add_subregion_overlap(root, 3 * PAGE + 0x400, split, 1)?;
                map.add_subregion(root, SECOND, second)?;
                Ok((root, ram, second))
            })
            .unwrap();
        let space = map.address_space("hart", root).unwrap();
        let reported = Arc::<Mutex<Vec<u64>>>::default();
        let note = reported.clone();
        let watch = blocks[0].dirty().watch_code(move |page| note.lock().unwrap().push(page));
        let watch = watch.unwrap();
        Self {
            map,
            root,
            window: None,
            second,
            has_second: true,
            renders: false,
            ram,
            blocks,
            space,
            claims: Default::default(),
            watch,
            reported,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Window(offset) => {
                let (old, root, ram) = (self.window.take(), self.root, self.ram);
                let window = self.map.transaction(|map| {
                    if let Some(old) = old {
                        map.del_subregion(old)?;
                        map.remove(old)?;
                    }
                    let window = map.alias("window", ram, offset, u128::from(2 * PAGE))?;
                    map.add_subregion(root, WINDOW, window)?;
                    Ok(window)
                });
                self.window = Some(window.unwrap());
            }
            Step::Bank(offset) => {
                if let Some(window) = self.window {
                    let moved = match self.renders {
                        true => self.map.transaction(|map| map.set_alias_offset(window, offset)),
                        false => self.map.set_alias_offset(window, offset),
                    };
                    moved.unwrap();
                }
            }
            Step::Second => {
                let (root, second, has) = (self.root, self.second, self.has_second);
                let toggled = self.map.transaction(|map| match has {
                    true => map.del_subregion(second),
                    false => map.add_subregion(root, SECOND, second),
                });
                toggled.unwrap();
                self.has_second = !has;
            }
            Step::Claim(n) => match self.claims[n].take() {
                Some(claim) => drop(claim),
                None => self.claims[n] = Some(self.blocks[0].dirty().claim("a log").unwrap()),
            },
            Step::Watch(page) => drop(self.watch.watch(page..page + 1).unwrap()),
            Step::Unwatch(page) => self.watch.unwatch(page..page + 1),
            Step::Discard(page) => self.blocks[0].discard(page * PAGE, PAGE).unwrap(),
            _ => {}
        }
    }

    fn dirty(&self, n: usize) -> Option<BTreeSet<u64>> {
        let harvest = self.claims[n].as_ref()?.snapshot_and_clear(0..PAGES).unwrap();
        let pages = harvest.pages().collect();
        harvest.commit();
        Some(pages)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Load(u64, usize),
    Fetch(u64, usize),
    Store(u64, usize, u64),
    Add(u64, usize, u64),
    StoreConditional { loads: (u64, u64), address: u64, value: u64 },
    Window(u64),
    Bank(u64),
    Second,
    Claim(usize),
    Harvest(usize),
    Watch(u64),
    Unwatch(u64),
    Discard(u64),
    Flush,
}

fn address() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0u64), 0..8u64, PAGE - 8..PAGE + 8];
    let base = prop_oneof![
        5 => 0u64..PAGES,
        2 => Just(3),
        2 => Just(WINDOW / PAGE),
        1 => Just(ROM / PAGE),
        1 => Just(REGISTERS / PAGE),
        1 => Just(SECOND / PAGE),
        1 => 0..256u64,
    ];
    let inside = prop_oneof![0x3f0..0x510u64, 0x7f8..0x908u64, (0..512u64).prop_map(|n| n * 8)];
    (base, prop_oneof![near, inside]).prop_map(|(page, at)| page * PAGE + at)
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(4), Just(8)]
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![(0..PAGES - 2).prop_map(|page| page * PAGE), Just(0x800), Just(0x804)];
    prop_oneof![
        6 => (address(), size()).prop_map(|(at, size)| Step::Load(at, size)),
        3 => (address(), size()).prop_map(|(at, size)| Step::Fetch(at, size)),
        12 => (address(), size(), any::<u64>()).prop_map(|(at, size, v)| Step::Store(at, size, v)),
        3 => (address(), size(), any::<u64>()).prop_map(|(at, size, v)| Step::Add(at, size, v)),
        2 => (address(), address(), any::<u64>(), 0..3u64).prop_map(|(a, b, value, same)| {
            let address = if same == 0 { b } else { a };
            Step::StoreConditional { loads: (a, b), address, value }
        }),
        1 => offset.clone().prop_map(Step::Window),
        2 => offset.prop_map(Step::Bank),
        1 => Just(Step::Second),
        1 => (0..3usize).prop_map(Step::Claim),
        3 => (0..3usize).prop_map(Step::Harvest),
        1 => (0..PAGES).prop_map(Step::Watch),
        1 => (0..PAGES).prop_map(Step::Unwatch),
        1 => (0..PAGES).prop_map(Step::Discard),
        1 => Just(Step::Flush),
    ]
}

fn load(tlb: &mut Tlb, address: u64, size: usize) -> Result<u64, AccessError> {
    Ok(match size {
        1 => tlb.load_le::<u8>(address)?.into(),
        2 => tlb.load_be::<u16>(address)?.swap_bytes().into(),
        4 => tlb.load_le::<u32>(address)?.into(),
        _ => tlb.load_be::<u64>(address)?.swap_bytes(),
    })
}

fn fetch(tlb: &mut Tlb, address: u64, size: usize) -> Result<u64, AccessError> {
    Ok(match size {
        1 => tlb.fetch_le::<u8>(address)?.into(),
        2 => tlb.fetch_be::<u16>(address)?.swap_bytes().into(),
        4 => tlb.fetch_le::<u32>(address)?.into(),
        _ => tlb.fetch_be::<u64>(address)?.swap_bytes(),
    })
}

#[allow(clippy::cast_possible_truncation)]
fn store(tlb: &mut Tlb, address: u64, size: usize, value: u64) -> Result<(), AccessError> {
    match size {
        1 => tlb.store_be(address, value as u8),
        2 => tlb.store_le(address, value as u16),
        4 => tlb.store_be(address, (value as u32).swap_bytes()),
        _ => tlb.store_le(address, value),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn add(tlb: &mut Tlb, address: u64, size: usize, value: u64) -> Result<u64, AccessError> {
    Ok(match size {
        1 => tlb.fetch_update_le(address, |old: u8| old.wrapping_add(value as u8))?.into(),
        2 => tlb.fetch_update_le(address, |old: u16| old.wrapping_add(value as u16))?.into(),
        4 => tlb.fetch_update_le(address, |old: u32| old.wrapping_add(value as u32))?.into(),
        _ => tlb.fetch_update_le(address, |old: u64| old.wrapping_add(value))?,
    })
}

fn read(space: &AddressSpace, address: u64, size: usize) -> Result<u64, AccessError> {
    let mut bytes = [0; 8];
    space.read(address, &mut bytes[..size])?;
    Ok(u64::from_le_bytes(bytes))
}

fn text<T>(result: Result<T, AccessError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// Whether atomic accesses are for memory at `address`: its offset in the block, if so.
fn atomic_offset(space: &AddressSpace, address: u64, size: usize) -> Option<u64> {
    let view = space.view();
    let section = view.section_at(address)?;
    let offset = section.offset() + (address - section.start());
    let size = size as u64;
    let fits =
        section.ram().is_some() && !section.readonly() && address + size - 1 <= section.last();
    (fits && address % size == 0 && offset % size == 0).then_some(offset)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Two machines alike, of which one is accessed through a TLB.
    #[test]
    fn a_tlb_does_what_the_space_does(steps in prop::collection::vec(step(), 1..120)) {
        let mut ours = Machine::new();
        let mut oracle = Machine { renders: true, ..Machine::new() };
        let mut tlb: Tlb = Tlb::new(&ours.space);
        for step in &steps {
            match *step {
                Step::Load(at, size) => {
                    let expected = text(read(&oracle.space, at, size));
                    prop_assert_eq!(text(load(&mut tlb, at, size)), expected);
                }
                Step::Fetch(at, size) => {
                    let expected = text(read(&oracle.space, at, size));
                    prop_assert_eq!(text(fetch(&mut tlb, at, size)), expected);
                }
                Step::Store(at, size, value) => {
                    let expected = text(oracle.space.write(at, &value.to_le_bytes()[..size]));
                    prop_assert_eq!(text(store(&mut tlb, at, size, value)), expected);
                }
                Step::Add(at, size, value) => {
                    let result = text(add(&mut tlb, at, size, value));
                    if atomic_offset(&oracle.space, at, size).is_some() {
                        let old = read(&oracle.space, at, size).unwrap();
                        prop_assert_eq!(result, Ok(old));
                        let new = old.wrapping_add(value).to_le_bytes();
                        oracle.space.write(at, &new[..size]).unwrap();
                    } else {
                        prop_assert!(result.is_err());
                    }
                }
                Step::StoreConditional { loads, address, value } => {
                    let _ = tlb.load_reserved_le::<u64>(loads.0);
                    let reserved = tlb.load_reserved_le::<u64>(loads.1).is_ok();
                    let result = tlb.store_conditional_le(address, value);
                    let can = atomic_offset(&oracle.space, address, 8).is_some();
                    let stores = can && reserved && address == loads.1;
                    prop_assert_eq!(matches!(result, Ok(true)), stores, "{:?}", result);
                    if stores {
                        oracle.space.write(address, &value.to_le_bytes()).unwrap();
                    }
                    prop_assert!(!matches!(tlb.store_conditional_le(address, value), Ok(true)));
                }
                Step::Harvest(n) => prop_assert_eq!(ours.dirty(n), oracle.dirty(n)),
                Step::Flush => tlb.flush(),
                _ => {
                    ours.step(step);
                    oracle.step(step);
                }
            }
            let reported = |machine: &Machine| machine.reported.lock().unwrap().clone();
            prop_assert_eq!(reported(&ours), reported(&oracle), "after {:?}", step);
        }
        for n in 0..3 {
            prop_assert_eq!(ours.dirty(n), oracle.dirty(n));
        }
        for (ours, oracle) in ours.blocks.iter().zip(&oracle.blocks) {
            let bytes = |block: &RamBlock| {
                let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
                block.read(0, &mut bytes).unwrap();
                bytes
            };
            prop_assert!(bytes(ours) == bytes(oracle), "memory differs");
        }
    }
}

/// Two harts store and add, while clients come and go and mirror the memory by their harvests: in
/// the end each mirror is the memory.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn mirrors_of_what_harts_store_are_complete() {
    let machine = Machine::new();
    let stop = AtomicBool::new(false);
    let mirror = |log: &DirtyClaim, mirror: &mut Vec<u8>| {
        let harvest = log.snapshot_and_clear(0..PAGES).unwrap();
        for page in harvest.pages() {
            let at = usize::try_from(page * PAGE).unwrap();
            machine.blocks[0].read(page * PAGE, &mut mirror[at..at + 4096]).unwrap();
        }
        harvest.commit();
    };
    let added: u64 = thread::scope(|scope| {
        let harts: Vec<_> = (0..2u64)
            .map(|hart| {
                let (machine, stop) = (&machine, &stop);
                scope.spawn(move || {
                    let mut tlb: Tlb = Tlb::new(&machine.space);
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // A long stay on one page, and then the next.
                        let page = 4 + (count / 1000 + hart * 5) % (PAGES - 4);
                        let at = page * PAGE + 64 * hart + 8 * (count % 7);
                        tlb.store_le(at, count).unwrap();
                        if count % 16 == 0 {
                            tlb.fetch_update_le(8 * (count % 5), |old: u64| old + 1).unwrap();
                        }
                        count += 1;
                    }
                    count.div_ceil(16)
                })
            })
            .collect();
        for round in 0..300 {
            let log = machine.blocks[0].dirty().claim("mirror").unwrap();
            // All of it, and then what was written since.
            let mut bytes = vec![0; usize::try_from(PAGES * PAGE).unwrap()];
            machine.blocks[0].read(0, &mut bytes).unwrap();
            (0..20).for_each(|_| mirror(&log, &mut bytes));
            if round == 299 {
                stop.store(true, Ordering::Relaxed);
                let added = harts.into_iter().map(|hart| hart.join().unwrap()).sum();
                mirror(&log, &mut bytes);
                let mut memory = vec![0; bytes.len()];
                machine.blocks[0].read(0, &mut memory).unwrap();
                assert!(memory == bytes, "a store is in no harvest");
                return added;
            }
        }
        unreachable!("the last round returns")
    });
    let sum: u64 = (0..5).map(|n| read(&machine.space, 8 * n, 8).unwrap()).sum();
    assert_eq!(sum, added, "an atomic addition was lost");
}

/// A hart that stands still makes no access by which it would follow.
#[test]
fn a_flush_lets_go_of_what_has_left() {
    let map = MemoryMap::new();
    let block = RamBlock::anonymous("ram", PAGES * PAGE).unwrap();
    let weak = Arc::downgrade(&block);
    let (root, ram) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let ram = map.ram("ram", block)?;
            map.add_subregion(root, 0, ram)?;
            Ok((root, ram))
        })
        .unwrap();
    let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root).unwrap());
    tlb.store_le(8, 7u64).unwrap();
    let remove = map.transaction(|map| {
        map.del_subregion(ram)?;
        map.remove(ram)
    });
    remove.unwrap();
    assert!(weak.upgrade().is_some(), "pages hold their memory");
    tlb.flush();
    assert!(weak.upgrade().is_none(), "the block is still there");
    assert!(tlb.load_le::<u64>(8).is_err());
}

/// A hart that was told of a commit uses the new map; its old block is not touched.
#[test]
fn a_commit_is_followed_by_the_next_access() {
    let mut machine = Machine::new();
    let mut tlb: Tlb = Tlb::new(&machine.space);
    for page in (0..PAGES - 2).cycle().take(1000) {
        machine.step(&Step::Window(page * PAGE));
        tlb.store_le(WINDOW + 8, page).unwrap();
        assert_eq!(read(&machine.space, page * PAGE + 8, 8).unwrap(), page);
    }
    machine.step(&Step::Second);
    assert!(matches!(tlb.load_le::<u8>(SECOND), Err(AccessError::Unassigned { .. })));
    drop(machine);
    // The space is gone from everybody but the TLB, whose pages hold their memory.
    tlb.store_le(8, 7u64).unwrap();
    assert_eq!(tlb.load_le::<u64>(8).unwrap(), 7);
}

/// The same for a hart that runs on meanwhile: it may take part of the commit, but once it is told,
/// it has the whole.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn a_hart_that_runs_follows_each_commit() {
    const COMMITS: u64 = 100_000;
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", PAGES * PAGE).unwrap();
    let (root, bank) = map
        .transaction(|map| {
            let root = map.container("root", 1 << 32)?;
            let region = map.ram("ram", ram.clone())?;
            let bank = map.alias("bank", region, 0, PAGE.into())?;
            map.add_subregion(root, 0x1000, bank)?;
            Ok((root, bank))
        })
        .unwrap();
    let space = map.address_space("hart", root).unwrap();
    let told = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut tlb: Tlb = Tlb::new(&space);
            loop {
                let number = told.load(Ordering::Acquire);
                let found = tlb.load_le::<u64>(0x1000).unwrap();
                assert!(found >= number, "{found}, {number} commits after the first");
                if number == COMMITS {
                    break;
                }
            }
        });
        for number in 1..=COMMITS {
            // Later ones have higher numbers, whichever page they are in.
            let offset = number % PAGES * PAGE;
            ram.write(offset, &number.to_le_bytes()).unwrap();
            map.set_alias_offset(bank, offset).unwrap();
            told.store(number, Ordering::Release);
        }
    });
}

/// A page that is watched again while its write is reported is reported at the next write, though
/// the watch itself had nothing to change.
#[cfg(not(target_family = "wasm"))] // has no threads
#[test]
fn a_page_that_is_watched_during_its_report_is_reported_again() {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", 1 << 20).unwrap();
    let root = map.transaction(|map| map.ram("ram", ram.clone())).unwrap();
    let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root).unwrap());
    let reports = Arc::new(Mutex::new(0));
    let watch = Arc::new(OnceLock::<CodeWatch>::new());
    let hook = {
        let (reports, watch) = (reports.clone(), watch.clone());
        move |page: u64| {
            *reports.lock().unwrap() += 1;
            let watch = watch.get().unwrap();
            thread::scope(|scope| drop(scope.spawn(|| watch.watch(page..page + 1).unwrap())));
        }
    };
    watch.set(ram.dirty().watch_code(hook).unwrap()).unwrap();
    watch.get().unwrap().watch(3..4).unwrap();
    for expected in 1..10 {
        tlb.store_le(3 * PAGE, 7u8).unwrap();
        assert_eq!(*reports.lock().unwrap(), expected);
        tlb.store_le(4 * PAGE, 7u8).unwrap();
    }
}

/// A device whose register changes when it is read.
struct Counter(Mutex<u64>);

impl MmioDevice for Counter {
    fn read(&self, _: u64, _: usize) -> u64 {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        *count
    }

    fn write(&self, _: u64, _: usize, _: u64) {}
}

#[test]
fn an_atomic_access_that_is_refused_does_not_read_the_device() {
    let map = MemoryMap::new();
    let counter = Arc::new(Counter(Mutex::new(0)));
    let root = map.transaction(|map| map.mmio("counter", 0x1000, counter.clone())).unwrap();
    let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root).unwrap());
    let refused = tlb.fetch_update_le(8, |old: u32| old + 1);
    assert!(matches!(refused, Err(AccessError::NotMemory { .. })), "{refused:?}");
    let refused = tlb.compare_exchange_le(8, 0u32, 1);
    assert!(matches!(refused, Err(AccessError::NotMemory { .. })), "{refused:?}");
    assert_eq!(*counter.0.lock().unwrap(), 0);
}

/// Two harts load, fetch and store through a bank that a third thread switches, while a fourth
/// harvests: what a hart finds is the bank of the last switch that it knows of, or of a later one,
/// and each of its stores is in a harvest.
#[cfg(not(target_family = "wasm"))] // threads
#[test]
fn harts_find_the_bank_that_was_switched_to() {
    const BANKS: u64 = 64;
    const SWITCHES: u64 = 40_000;
    let map = MemoryMap::new();
    let banks = RamBlock::anonymous("banks", BANKS * PAGE).unwrap();
    for bank in 0..BANKS {
        let byte = u8::try_from(bank).unwrap();
        banks.write(bank * PAGE, &[byte; 64]).unwrap();
    }
    let (root, bank) = map
        .transaction(|map| {
            let root = map.container("system", 1 << 20)?;
            let memory = map.ram("banks", banks.clone())?;
            let bank = map.alias("bank", memory, 0, u128::from(PAGE))?;
            let other = map.alias("other", memory, 0, u128::from(PAGE))?;
            map.add_subregion(root, 0, other)?;
            map.add_subregion(root, 2 * PAGE, bank)?;
            Ok((root, bank))
        })
        .unwrap();
    let space = map.address_space("cpu", root).unwrap();
    let log = banks.dirty().claim("a log").unwrap();
    let mut mirror = vec![0; usize::try_from(BANKS * PAGE).unwrap()];
    banks.read(0, &mut mirror).unwrap();
    let mut refresh = |log: &DirtyClaim| {
        let harvest = log.snapshot_and_clear(0..BANKS).unwrap();
        for page in harvest.pages() {
            let at = usize::try_from(page * PAGE).unwrap();
            banks.read(page * PAGE, &mut mirror[at..at + 4096]).unwrap();
        }
        harvest.commit();
    };
    // How many switches are complete.
    let switched = AtomicU64::new(0);
    thread::scope(|scope| {
        let harts = [0u64, 1].map(|hart| {
            let (space, switched) = (&space, &switched);
            scope.spawn(move || {
                let mut tlb: Tlb = Tlb::new(space);
                let mut count = 0u64;
                loop {
                    let before = switched.load(Ordering::Acquire);
                    let at = 2 * PAGE + 8 * (count % 8);
                    let found = match count % 3 {
                        0 => tlb.fetch_le::<u8>(at).unwrap(),
                        _ => tlb.load_le::<u8>(at).unwrap(),
                    };
                    let after = switched.load(Ordering::Acquire);
                    // Of the switches from the last that was complete before to the one that may
                    // have been under way after.
                    let mut possible = before..=after + 1;
                    assert!(
                        after - before > BANKS || possible.any(|n| n % BANKS == u64::from(found)),
                        "bank {found} of switches {before} to {after}"
                    );
                    tlb.store_le(2 * PAGE + 64 + 8 * hart, count).unwrap();
                    count += 1;
                    if after >= SWITCHES {
                        return;
                    }
                }
            })
        });
        let committer = scope.spawn(|| {
            for n in 1..=SWITCHES {
                map.set_alias_offset(bank, n % BANKS * PAGE).unwrap();
                switched.store(n, Ordering::Release);
                if n % 1000 == 0 {
                    // All entries are compared again.
                    map.transaction(|_| Ok(())).unwrap();
                }
            }
        });
        while !committer.is_finished() {
            refresh(&log);
        }
        harts.into_iter().for_each(|hart| hart.join().unwrap());
    });
    refresh(&log);
    let mut memory = vec![0; mirror.len()];
    banks.read(0, &mut memory).unwrap();
    assert!(memory == mirror, "a store is in no harvest");
}
