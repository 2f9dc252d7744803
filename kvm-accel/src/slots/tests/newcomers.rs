//! A client that is switched on at the block, and a page whose code watch begins, at
//! each point of a sync and a clear; then a guest's store, at each later point.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_region::MemoryMap;
use ram_block::{CodeWatch, DirtyClaim, DirtyClient, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, Policy};
use crate::slots::table::{Mode, Slots};
use crate::sys::ioctl::{SlotCalls, SlotRegion};

const VGA: DirtyClient = DirtyClient::VGA;
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const PAGES: u64 = 256;
/// The page that the guest writes.
const PAGE: u64 = 70;

/// What begins at the block: a client or a code watch.
#[derive(Clone, Copy, Debug)]
enum Newcomer {
    Client,
    Watch,
}

/// The new client or watch, and the guest.
struct Script {
    block: Arc<RamBlock>,
    newcomer: Newcomer,
    /// The points at which it begins, and at which the guest stores.
    points: Range<u32>,
    /// How many points have passed.
    now: u32,
    vcpu: Option<usize>,
    /// The new client's log.
    claim: Option<DirtyClaim>,
    /// Created before any point, as it is on from then on: only its pages are watched later.
    watch: Option<CodeWatch>,
}

impl Script {
    fn pass(&mut self, kvm: &Paper) {
        if self.now == self.points.start {
            match (self.newcomer, &self.watch) {
                (Newcomer::Watch, Some(watch)) => drop(watch.watch(PAGE..PAGE + 1).unwrap()),
                _ => self.claim = Some(self.block.dirty().claim(VGA).unwrap()),
            }
            // It reads the page here: all later stores have to be reported to it.
        }
        if self.now == self.points.end {
            kvm.store(PAGE * PageSize::host().bytes(), self.vcpu).unwrap();
        }
        self.now += 1;
    }
}

/// A KVM each of whose calls is preceded and followed by a step of the script.
struct Stepping {
    kvm: Paper,
    script: Arc<Mutex<Script>>,
}

impl Stepping {
    fn around<T>(&self, call: impl FnOnce(&Paper) -> T) -> T {
        let pass = || self.script.lock().unwrap().pass(&self.kvm);
        pass();
        let result = call(&self.kvm);
        pass();
        result
    }
}

impl SlotCalls for Stepping {
    fn get_dirty_log(&self, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
        self.around(|kvm| kvm.get_dirty_log(slot, pages, bitmap))
    }

    fn clear_dirty_log(&self, slot: u32, first: u64, count: u32, bitmap: &[u64]) -> io::Result<()> {
        self.around(|kvm| kvm.clear_dirty_log(slot, first, count, bitmap))
    }

    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        self.kvm.exclude(work)
    }

    fn reset_rings(&self) -> io::Result<u64> {
        self.around(SlotCalls::reset_rings)
    }

    fn set_slot(&self, region: SlotRegion, block: &RamBlock) -> io::Result<()> {
        self.kvm.set_slot(region, block)
    }
}

/// Whether the store is reported to the newcomer; `None` if the points lie behind the end.
fn is_told(mode: Mode, policy: Policy, newcomer: Newcomer, points: Range<u32>) -> Option<bool> {
    let page = PageSize::host().bytes();
    let block = RamBlock::anonymous("ram", PAGES * page).unwrap();
    let map = MemoryMap::new();
    let (system, ram) = map
        .transaction(|map| {
            let (system, ram) = (map.container("system", 1 << 40)?, map.ram("ram", block.clone())?);
            map.add_subregion(system, 0, ram)?;
            Ok((system, ram))
        })
        .unwrap();
    let mut log = map.claim_global_log(MIGRATION).unwrap();
    let rings = matches!(mode, Mode::Rings { .. });
    let watch = matches!(newcomer, Newcomer::Watch).then(|| block.dirty().watch_code(|_| ()));
    let script = Arc::new(Mutex::new(Script {
        block: block.clone(),
        newcomer,
        points: points.clone(),
        now: u32::MAX / 2, // no point yet
        vcpu: rings.then_some(0),
        claim: None,
        watch: watch.map(Result::unwrap),
    }));
    let kvm = Stepping { kvm: Paper::new(mode, 1), script: script.clone() };
    let mut slots = Slots::new(4, 1 << 30, mode);
    for entries in kvm.kvm.mapped() {
        slots.rings.add(entries);
    }
    let follower = Arc::new(Follower { kvm: Mutex::new(kvm), slots: Mutex::new(slots), policy });
    let space = map.address_space("memory", system).unwrap();
    map.add_listener(&space, follower.clone()).unwrap();
    let store = || {
        let stepping = follower.kvm.lock().unwrap();
        let vcpu = rings.then_some(0);
        stepping.kvm.store(PAGE * page, vcpu).unwrap();
    };
    let pass = || {
        let stepping = follower.kvm.lock().unwrap();
        let mut script = stepping.script.lock().unwrap();
        script.pass(&stepping.kvm);
    };
    // What the log starts with.
    log.sync().unwrap();
    log.snapshot_and_clear(&block, 0..block.len()).unwrap().commit();
    store();
    script.lock().unwrap().now = 0;
    pass();
    map.sync_dirty_log(ram).unwrap();
    pass();
    log.clear(&block, 0..block.len()).unwrap();
    pass();
    let all_passed = points.end < script.lock().unwrap().now;
    script.lock().unwrap().now = u32::MAX / 2;
    map.sync_dirty_log(ram).unwrap();
    let told = match (newcomer, &script.lock().unwrap().watch) {
        (Newcomer::Watch, Some(watch)) => !watch.is_watched(PAGE),
        _ => block.dirty().is_dirty(VGA, PAGE),
    };
    all_passed.then_some(told)
}

/// At how many pairs of points the store is reported, and at how many it is not.
fn at_each_point(mode: Mode, policy: Policy, newcomer: Newcomer) -> (u32, u32) {
    let (mut told, mut lost) = (0, 0);
    for comes in 0.. {
        let stores = (comes..).map_while(|at| is_told(mode, policy, newcomer, comes..at));
        let before = told + lost;
        stores.for_each(|is_told| if is_told { told += 1 } else { lost += 1 });
        if told + lost == before {
            return (told, lost);
        }
    }
    unreachable!("the points come to an end")
}

const MANUAL: Mode = Mode::ManualProtect { chunk: 64 };

#[test]
fn a_newcomer_is_told_of_each_store_whenever_it_comes() {
    let rings = [true, false].map(|with_bitmap| Mode::Rings { with_bitmap });
    for mode in [MANUAL, Mode::Bitmap, rings[0], rings[1]] {
        for newcomer in [Newcomer::Client, Newcomer::Watch] {
            let (told, lost) = at_each_point(mode, Policy::Held, newcomer);
            assert!(told > 10 && lost == 0, "{mode:?}, {newcomer:?}: {told} told, {lost} lost");
        }
    }
}

/// Without the reads of the count before and after a clear.
#[test]
fn the_points_show_a_clear_that_does_not_see_the_newcomer() {
    let (_, lost) = at_each_point(MANUAL, Policy::Deaf, Newcomer::Client);
    assert!(lost > 0);
}
