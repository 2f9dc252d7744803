//! Random maps, stores, harvests and failing calls.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::{GlobalLogClaim, LogClaim, MapError, MemoryMap, RegionId};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use ram_block::{DirtyClient, Harvest, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, Policy};
use crate::dirty_ring::set::RingOfVcpu;
use crate::slots::table::{Mode, Slots};

#[derive(Clone, Debug)]
enum Step {
    /// Shows or hides overlays, all in one commit.
    Commit {
        overlays: [bool; 3],
        fail: Option<u32>,
    },
    /// Starts or stops VGA's log.
    Log {
        on: bool,
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
    /// A client takes some pages and reads them, after a sync or, if it logs all RAM, from what
    /// it still has.
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
        2 => (any::<[bool; 3]>(), prop::option::of(0..12u32))
            .prop_map(|(overlays, fail)| Step::Commit { overlays, fail }),
        2 => (any::<bool>(), prop::option::weighted(0.2, 0..12u32))
            .prop_map(|(on, fail)| Step::Log { on, fail }),
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

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Region), Just(Scope::All)]
}

/// What a client logs.
#[derive(Clone, Copy, Debug)]
enum Scope {
    /// The region of RAM: slots of overlays that it alone would log are not logged.
    Region,
    /// All RAM.
    All,
}

enum Log {
    Region(LogClaim),
    All(GlobalLogClaim),
}

impl Scope {
    fn claim(
        self,
        map: &Arc<MemoryMap>,
        region: RegionId,
        client: DirtyClient,
    ) -> Result<Log, MapError> {
        match self {
            Self::Region => map.claim_log(region, client).map(Log::Region),
            Self::All => map.claim_global_log(client).map(Log::All),
        }
    }
}

impl Log {
    fn take(
        &mut self,
        ram: &Arc<RamBlock>,
        sync: bool,
        bytes: Range<u64>,
    ) -> Result<Harvest, MapError> {
        match self {
            Self::Region(log) => log.snapshot_and_clear(bytes),
            Self::All(log) => {
                if sync {
                    log.sync()?;
                }
                log.snapshot_and_clear(ram, bytes)
            }
        }
    }
}

/// A map, its follower, and what each client has read of the memory.
struct Machine {
    map: Arc<MemoryMap>,
    ram: Arc<RamBlock>,
    region: RegionId,
    overlays: [RegionId; 3],
    follower: Arc<Follower>,
    rings: Vec<RingOfVcpu>,
    scopes: [Scope; 2],
    logs: [Option<Log>; 2],
    /// How often each page was stored to, and what each client has read of that.
    memory: Vec<u64>,
    copies: [Vec<u64>; 2],
}

impl Machine {
    fn new(mode: Mode, split: bool, policy: Policy, scopes: [Scope; 2]) -> Self {
        let page = PageSize::host().bytes();
        let ram = RamBlock::anonymous("ram", PAGES * page).unwrap();
        let map = MemoryMap::new();
        let (system, region) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 40)?;
                let region = map.ram("ram", ram.clone())?;
                map.add_subregion_overlap(system, 0, region, 0)?;
                Ok((system, region))
            })
            .unwrap();
        let overlays = overlays(&map, system, page);
        let logs = [None, Some(scopes[1].claim(&map, region, DirtyClient::MIGRATION).unwrap())];
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
        Self { map, ram, region, overlays, follower, rings, scopes, logs, memory, copies }
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

    fn is_on(&self, client: DirtyClient) -> bool {
        self.ram.dirty().enabled().contains(client)
    }

    fn commit(&mut self, shown: [bool; 3], fail: Option<u32>) {
        let was_on = self.is_on(DirtyClient::VGA);
        self.fail(fail);
        let shown = self.overlays.iter().zip(shown);
        // If it is refused, everything stays as it was.
        let committed = self.map.transaction(|map| {
            shown.into_iter().try_for_each(|(overlay, shown)| map.set_enabled(*overlay, shown))
        });
        self.fail(None);
        // There may be too few slots, too.
        self.check_vga(was_on, fail.is_some() || committed.is_err());
    }

    fn log(&mut self, on: bool, fail: Option<u32>) {
        if on == self.logs[0].is_some() {
            return;
        }
        let was_on = self.is_on(DirtyClient::VGA);
        self.fail(fail);
        if !on {
            self.logs[0] = None;
        } else {
            // Stops the former log first, if that was refused; which may be refused again.
            let claimed = self.scopes[0].claim(&self.map, self.region, DirtyClient::VGA);
            let is_claimed = matches!(claimed, Err(MapError::Claimed { .. }));
            assert!(!is_claimed || was_on && fail.is_some());
            self.logs[0] = claimed.ok();
        }
        self.fail(None);
        self.check_vga(was_on, fail.is_some());
        if self.logs[0].is_some() {
            // A client that comes begins with all of memory.
            self.copies[0].clone_from(&self.memory);
        }
    }

    /// A stop that is refused leaves VGA on, with nothing lost, until a later change of the map.
    fn check_vga(&mut self, was_on: bool, failed: bool) {
        let (is_on, is_claimed) = (self.is_on(DirtyClient::VGA), self.logs[0].is_some());
        let may_go_on = was_on && failed;
        assert!(is_on == is_claimed || is_on && may_go_on, "{is_on}, {is_claimed}");
        if !(was_on && is_on) {
            self.copies[0].clone_from(&self.memory);
        }
    }

    fn take(&mut self, vga: bool, sync: bool, pages: Range<u64>, fail: Option<u32>) {
        let client = usize::from(!vga);
        let Some(log) = &mut self.logs[client] else { return };
        self.follower.kvm.lock().unwrap().calls_to_failure.set(fail);
        let taken = log.take(&self.ram, sync, PageSize::host().bytes_of(&pages));
        self.follower.kvm.lock().unwrap().calls_to_failure.set(None);
        assert!(taken.is_ok() || fail.is_some(), "{taken:?}");
        let taken = taken.map(Harvest::commit).unwrap_or_default();
        for page in taken.pages() {
            let page = usize::try_from(page).unwrap();
            self.copies[client][page] = self.memory[page];
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit { overlays, fail } => self.commit(overlays, fail),
            Step::Log { on, fail } => self.log(on, fail),
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
        scopes in [scope(), scope()],
    ) {
        let mut machine = Machine::new(mode, split, Policy::Held, scopes);
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
        let mut machine = Machine::new(mode, false, Policy::Own, [Scope::All; 2]);
        steps.into_iter().for_each(|step| machine.step(step));
        prop_assert!(machine.lost().is_none());
        Ok(())
    });
    assert!(matches!(result, Err(TestError::Fail(..))), "{result:?}");
}
