//! Random maps, stores, harvests and failing calls.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::{MapError, MemoryMap, RegionId};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use ram_block::{DirtyClient, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, Policy};
use crate::dirty_ring::set::RingOfVcpu;
use crate::slots::table::{Mode, Slots};

#[derive(Clone, Debug)]
enum Step {
    /// Shows or hides overlays and switches VGA's log, all in one commit.
    Commit {
        overlays: [bool; 3],
        log: bool,
        fail: Option<u32>,
    },
    /// A vCPU stores to pages in a row, and KVM checks whether its ring is full after so many;
    /// or a device does.
    Store {
        vcpu: Option<usize>,
        page: u64,
        count: u64,
        unchecked: u64,
    },
    /// An entry for a slot that does not exist, or for a page that its slot does not have.
    Wrong {
        slot: u32,
        page: u64,
    },
    /// A signal interrupts the next reset.
    Signal {
        after: u64,
    },
    Sync {
        fail: bool,
    },
    /// A client takes some pages and reads them, after a sync or from what it still has.
    Take {
        vga: bool,
        sync: bool,
        pages: (u64, u64),
        fail: Option<u32>,
    },
}

const CLIENTS: [DirtyClient; 2] = [DirtyClient::VGA, DirtyClient::MIGRATION];
const PAGES: u64 = 300;
const VCPUS: usize = 2;
/// Fewer slots than all overlays need, if they are not split.
const LIMIT: usize = 5;
/// The same for slots of 100 pages.
const LIMIT_OF_SPLIT: usize = 8;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<[bool; 3]>(), any::<bool>(), prop::option::of(0..12u32))
            .prop_map(|(overlays, log, fail)| Step::Commit { overlays, log, fail }),
        6 => (prop::option::weighted(0.9, 0..VCPUS), 0..PAGES, 1..4u64).prop_map(
            |(vcpu, page, count)| Step::Store { vcpu, page, count, unchecked: 1 }),
        1 => (0..VCPUS, 0..PAGES, 1..PAGES, prop_oneof![Just(1), 1..120u64]).prop_map(
            |(vcpu, page, count, unchecked)| Step::Store { vcpu: Some(vcpu), page, count,
                unchecked }),
        1 => (0..20u32, 0..2 * PAGES).prop_map(|(slot, page)| Step::Wrong { slot, page }),
        1 => (0..20u64).prop_map(|after| Step::Signal { after }),
        1 => prop::bool::weighted(0.3).prop_map(|fail| Step::Sync { fail }),
        3 => (any::<bool>(), any::<bool>(), (0..PAGES, 1..PAGES),
            prop::option::weighted(0.2, 0..3u32))
            .prop_map(|(vga, sync, pages, fail)| Step::Take { vga, sync, pages, fail }),
    ]
}

fn overlays(map: &MemoryMap, system: RegionId, page: u64) -> [RegionId; 3] {
    let bytes = u128::from(page);
    map.transaction(|map| {
        let block = RamBlock::anonymous("overlay", 8 * page)?;
        let whole = map.ram("overlay", block)?;
        let alias = map.alias("alias", whole, 3 * page, 5 * bytes)?;
        let rom = map.rom("rom", RamBlock::anonymous("rom", 4 * page)?)?;
        map.add_subregion_overlap(system, 10 * page, whole, 1)?;
        map.add_subregion_overlap(system, 30 * page, alias, 2)?;
        map.add_subregion_overlap(system, 33 * page, rom, 3)?;
        map.set_enabled(alias, false)?;
        Ok([whole, alias, rom])
    })
    .unwrap()
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Bitmap),
        Just(Mode::ManualProtect { chunk: 64 }),
        Just(Mode::ManualProtect { chunk: 192 }),
        Just(Mode::Rings { with_bitmap: false }),
        Just(Mode::Rings { with_bitmap: true }),
    ]
}

/// A map, its follower, and what each client has read of the memory.
struct Machine {
    map: Arc<MemoryMap>,
    ram: Arc<RamBlock>,
    region: RegionId,
    overlays: [RegionId; 3],
    follower: Arc<Follower>,
    rings: Vec<RingOfVcpu>,
    /// How often each page was stored to, and what each client has read of that.
    memory: Vec<u64>,
    copies: [Vec<u64>; 2],
}

impl Machine {
    fn new(mode: Mode, split: bool, policy: Policy) -> Self {
        let page = PageSize::host().bytes();
        let ram = RamBlock::anonymous("ram", PAGES * page).unwrap();
        let map = MemoryMap::new();
        let (system, region) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 40)?;
                let region = map.ram("ram", ram.clone())?;
                map.add_subregion_overlap(system, 0, region, 0)?;
                map.set_log(region, DirtyClient::MIGRATION, true)?;
                Ok((system, region))
            })
            .unwrap();
        let overlays = overlays(&map, system, page);
        let space = map.address_space("memory", system).unwrap();
        let (limit, most) = if split { (LIMIT_OF_SPLIT, 100) } else { (LIMIT, 1 << 20) };
        let kvm = Paper::new(mode, VCPUS);
        let mut slots = Slots::new(limit, most * page, mode);
        let rings = kvm.mapped().into_iter().map(|entries| slots.rings.add(entries)).collect();
        let follower =
            Arc::new(Follower { kvm: Mutex::new(kvm), slots: Mutex::new(slots), policy });
        let memory = vec![0u64; usize::try_from(PAGES).unwrap()];
        let copies = [memory.clone(), memory.clone()];
        map.add_listener(&space, follower.clone()).unwrap();
        Self { map, ram, region, overlays, follower, rings, memory, copies }
    }

    fn fail(&self, calls: Option<u32>) {
        self.follower.kvm.lock().unwrap().calls_to_failure.set(calls);
    }

    fn store(&mut self, vcpu: Option<usize>, number: u64) {
        let page = PageSize::host().bytes();
        let host = self.ram.host_address() as usize;
        let found = self.follower.kvm.lock().unwrap().store(number * page, vcpu);
        if let Some((_, at)) = found.filter(|(block, _)| *block == host) {
            self.memory[usize::try_from(at).unwrap()] += 1;
        }
    }

    /// What a vCPU does whose ring is full; `moves` is the count when it was entered.
    fn drain(&self, vcpu: usize, mut moves: u64) {
        let kvm = self.follower.kvm.lock().unwrap();
        let mut slots = self.follower.slots.lock().unwrap();
        let mut tries = 0;
        while kvm.is_full(vcpu) {
            tries += 1;
            assert!(tries < 50, "the ring stays full");
            slots.ring_full(&*kvm, &self.rings[vcpu], moves).unwrap();
            moves = self.moves(vcpu);
        }
    }

    fn moves(&self, vcpu: usize) -> u64 {
        self.rings.get(vcpu).map_or(0, RingOfVcpu::moves)
    }

    fn commit(&mut self, shown: [bool; 3], log: bool, fail: Option<u32>) {
        let was_on = self.ram.dirty().enabled().contains(DirtyClient::VGA);
        self.fail(fail);
        let result = self.map.transaction(|map| {
            for (overlay, shown) in self.overlays.iter().zip(shown) {
                map.set_enabled(*overlay, shown)?;
            }
            map.set_log(self.region, DirtyClient::VGA, log)
        });
        self.fail(None);
        let is_on = self.ram.dirty().enabled().contains(DirtyClient::VGA);
        assert_eq!(is_on, if result.is_ok() { log } else { was_on });
        // A switch-off that is refused leaves VGA on, with nothing lost.
        if !(was_on && is_on) {
            self.copies[0].clone_from(&self.memory);
        }
    }

    fn take(&mut self, vga: bool, sync: bool, pages: Range<u64>, fail: Option<u32>) {
        let page = PageSize::host().bytes();
        let client = CLIENTS[usize::from(!vga)];
        self.fail(fail);
        let result = (|| {
            if sync {
                self.map.sync_dirty_log(self.region)?;
            }
            let harvest = self.ram.dirty().snapshot_and_clear(client, pages.clone())?;
            self.map.log_clear(&self.ram, pages.start * page..pages.end * page)?;
            for page in harvest.commit().pages() {
                let page = usize::try_from(page).unwrap();
                self.copies[usize::from(!vga)][page] = self.memory[page];
            }
            Ok::<(), MapError>(())
        })();
        self.fail(None);
        let is_on = self.ram.dirty().enabled().contains(client);
        assert!(result.is_ok() || fail.is_some() || !is_on, "{result:?}");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit { overlays, log, fail } => self.commit(overlays, log, fail),
            Step::Store { vcpu, page, count, unchecked } => {
                let mut moves = vcpu.map_or(0, |vcpu| self.moves(vcpu));
                for n in 0..count {
                    self.store(vcpu, (page + n) % PAGES);
                    if let Some(vcpu) = vcpu.filter(|_| (n + 1) % unchecked == 0 || n + 1 == count)
                    {
                        self.drain(vcpu, moves);
                        moves = self.moves(vcpu);
                    }
                }
            }
            Step::Wrong { slot, page } => {
                let kvm = self.follower.kvm.lock().unwrap();
                if let Some(ring) = kvm.rings.borrow_mut().first_mut() {
                    ring.push(slot, page);
                }
                drop(kvm);
                self.drain(0, self.moves(0));
            }
            Step::Signal { after } => {
                self.follower.kvm.lock().unwrap().signal_after.set(Some(after));
            }
            Step::Sync { fail } => {
                self.fail(fail.then_some(0));
                let result = self.map.sync_dirty_log(self.region);
                self.fail(None);
                // With rings there may be nothing to reset.
                let rings = !self.follower.kvm.lock().unwrap().mapped().is_empty();
                assert!(result.is_err() == fail || rings && result.is_ok(), "{result:?}");
            }
            Step::Take { vga, sync, pages: (first, count), fail } => {
                self.take(vga, sync, first..(first + count).min(PAGES), fail);
            }
        }
        self.follower.check();
    }

    /// A page that was stored to, that a client has not read since, and of which it has no
    /// bit, if there is one.
    fn lost(&self) -> Option<(DirtyClient, usize)> {
        self.map.sync_dirty_log(self.region).unwrap();
        let dirty = self.ram.dirty();
        let on = CLIENTS.into_iter().zip(&self.copies);
        let on = on.filter(|(client, _)| dirty.enabled().contains(*client));
        on.flat_map(|(client, copy)| (0..copy.len()).map(move |page| (client, copy, page)))
            .find(|(client, copy, page)| {
                copy[*page] != self.memory[*page] && !dirty.is_dirty(*client, *page as u64)
            })
            .map(|(client, _, page)| (client, page))
    }
}

proptest! {
    #![proptest_config(Config::with_cases(Config::default().cases.max(512)))]

    #[test]
    fn whatever_fails_the_table_is_what_kvm_has_and_no_store_is_lost(
        steps in prop::collection::vec(step(), 1..80),
        mode in modes(),
        split in any::<bool>(),
    ) {
        let mut machine = Machine::new(mode, split, Policy::Held);
        steps.into_iter().for_each(|step| machine.step(step));
        let lost = machine.lost();
        prop_assert!(lost.is_none(), "{:?} is lost", lost);
    }
}

/// The same steps lose pages if clients clear with their own bits.
#[test]
fn the_steps_show_what_clearing_with_ones_own_bits_loses() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let steps = prop::collection::vec(step(), 1..80);
    let result = runner.run(&steps, |steps| {
        let mode = Mode::ManualProtect { chunk: 64 };
        let mut machine = Machine::new(mode, false, Policy::Own);
        steps.into_iter().for_each(|step| machine.step(step));
        prop_assert!(machine.lost().is_none());
        Ok(())
    });
    assert!(matches!(result, Err(TestError::Fail(..))), "{result:?}");
}
