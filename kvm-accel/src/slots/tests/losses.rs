//! Entries of rings that are lost: each way in which this is detected marks all pages of all
//! logged slots, re-arms them, and is counted.

use std::sync::{Arc, Mutex};

use memory_region::{LogClaim, MemoryMap, RegionId};
use ram_block::{DirtyClaim, DirtyClient, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, Policy};
use crate::dirty_ring::set::RingOfVcpu;
use crate::slots::table::{Mode, Slots};

const MODE: Mode = Mode::Rings { with_bitmap: false };
/// Pages of each block.
const PAGES: u64 = 200;
const CLIENTS: [DirtyClient; 2] = [DirtyClient::VGA, DirtyClient::MIGRATION];

/// Two blocks of which everything is logged, in slots of 100 pages; one that is not.
struct Machine {
    map: Arc<MemoryMap>,
    blocks: [Arc<RamBlock>; 3],
    region: RegionId,
    /// Why the slots of the first two are logged.
    _logged: [LogClaim; 2],
    /// The clients of each, which take what is marked without a sync.
    clients: [[DirtyClaim; 2]; 2],
    follower: Arc<Follower>,
    rings: Vec<RingOfVcpu>,
}

impl Machine {
    fn new() -> Self {
        let page = PageSize::host().bytes();
        let blocks = ["one", "two", "unlogged"];
        let blocks = blocks.map(|name| RamBlock::anonymous(name, PAGES * page).unwrap());
        let map = MemoryMap::new();
        let (system, regions) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 40)?;
                let mut regions = Vec::new();
                for (n, block) in (0..).zip(&blocks) {
                    let region = map.ram(block.id(), block.clone())?;
                    map.add_subregion(system, n * PAGES * page, region)?;
                    regions.push(region);
                }
                Ok((system, regions))
            })
            .unwrap();
        let logged = [0, 1].map(|n| map.claim_log(regions[n], "slots").unwrap());
        let clients =
            [0, 1].map(|n| CLIENTS.map(|client| blocks[n].dirty().claim(client).unwrap()));
        let kvm = Paper::new(MODE, 2);
        let mut slots = Slots::new(100, 100 * page, MODE);
        let rings = kvm.mapped().into_iter().map(|entries| slots.rings.add(entries)).collect();
        let (kvm, slots, policy) = (Mutex::new(kvm), Mutex::new(slots), Policy::Held);
        let follower = Arc::new(Follower { kvm, slots, policy });
        let space = map.address_space("memory", system).unwrap();
        map.add_listener(&space, follower.clone()).unwrap();
        let region = regions[0];
        let machine = Self { map, blocks, region, _logged: logged, clients, follower, rings };
        machine.take();
        machine
    }

    /// Takes all bits; returns how many each client had of each block.
    fn take(&self) -> [[u64; 2]; 2] {
        self.clients.each_ref().map(|clients| {
            clients.each_ref().map(|log| log.snapshot_and_clear(0..PAGES).unwrap().commit().count())
        })
    }

    /// vCPU 0 stores to so many pages from the first on.
    fn store(&self, count: u64) {
        let kvm = self.follower.kvm.lock().unwrap();
        for number in 0..count {
            kvm.store(number * PageSize::host().bytes(), Some(0)).unwrap();
        }
    }

    fn sync(&self) {
        self.map.sync_dirty_log(self.region).unwrap();
    }

    fn losses(&self) -> u64 {
        self.follower.slots.lock().unwrap().stats.ring_overruns
    }

    /// All was marked, once, and a store is logged again, whatever was stored before.
    fn check_all_marked(&self) {
        assert_eq!(self.losses(), 1);
        assert_eq!(self.take(), [[PAGES; 2]; 2]);
        assert!(self.blocks[2].dirty().enabled().is_empty());
        self.store(30);
        self.sync();
        assert_eq!(self.take(), [[30; 2], [0; 2]], "the pages are not watched");
        assert_eq!(self.losses(), 1, "one loss is one");
    }
}

#[test]
fn entries_that_are_all_there_are_no_loss() {
    let machine = Machine::new();
    machine.store(40);
    machine.sync();
    assert_eq!(machine.take(), [[40; 2], [0; 2]]);
    machine.sync();
    assert_eq!(machine.take(), [[0; 2]; 2]);
    assert_eq!(machine.losses(), 0);
}

#[test]
fn a_reset_that_a_signal_ends() {
    for after in [0, 1, 5, 19] {
        let machine = Machine::new();
        machine.store(20);
        machine.follower.kvm.lock().unwrap().signal_after.set(Some(after));
        machine.sync();
        machine.check_all_marked();
    }
}

#[test]
fn a_ring_that_is_written_over() {
    for count in [64, 65, 100, 130, 200] {
        let machine = Machine::new();
        machine.store(count);
        machine.sync();
        assert_eq!(machine.losses(), 1, "{count} stores to 64 entries");
        assert_eq!(machine.take(), [[PAGES; 2]; 2]);
    }
}

#[test]
fn losses_of_a_ring_that_was_written_over_end() {
    for count in [65, 100, 130, 200] {
        let machine = Machine::new();
        machine.store(count);
        let mut losses = 0;
        for round in 0..40 {
            machine.sync();
            machine.take();
            machine.store(3);
            if round == 3 {
                losses = machine.losses();
            }
        }
        assert_eq!(machine.losses(), losses, "{count} stores to 64 entries");
        machine.take();
        machine.sync();
        assert_eq!(machine.take(), [[3; 2], [0; 2]]);
    }
}

#[test]
fn entries_of_no_slot_or_no_page() {
    for (slot, page) in [(77, 0), (0, 100), (0, u64::MAX), (1 << 16, 0), (u32::MAX, u64::MAX)] {
        let machine = Machine::new();
        machine.store(3);
        let kvm = machine.follower.kvm.lock().unwrap();
        kvm.rings.borrow_mut()[1].push(slot, page);
        drop(kvm);
        machine.sync();
        machine.check_all_marked();
    }
}

#[test]
fn a_full_ring_that_yields_nothing() {
    let machine = Machine::new();
    let kvm = machine.follower.kvm.lock().unwrap();
    kvm.rings.borrow_mut()[0].go_round();
    let mut slots = machine.follower.slots.lock().unwrap();
    let ring = &machine.rings[0];
    slots.ring_full(&*kvm, ring, ring.moves()).unwrap();
    assert_eq!((slots.stats.ring_overruns, slots.stats.ring_full), (1, 1));
    let mut tries = 0;
    while kvm.is_full(0) {
        tries += 1;
        assert!(tries < 20, "the ring stays full");
        slots.ring_full(&*kvm, ring, ring.moves()).unwrap();
    }
    drop((slots, kvm));
    assert_eq!(machine.take(), [[PAGES; 2]; 2]);
}

/// The thread that emptied the ring meanwhile has its entries.
#[test]
fn a_full_ring_that_another_has_emptied_is_no_loss() {
    let machine = Machine::new();
    let ring = &machine.rings[0];
    let moves = ring.moves();
    machine.store(60);
    machine.sync();
    let kvm = machine.follower.kvm.lock().unwrap();
    machine.follower.slots.lock().unwrap().ring_full(&*kvm, ring, moves).unwrap();
    drop(kvm);
    assert_eq!(machine.losses(), 0);
    assert_eq!(machine.take(), [[60; 2], [0; 2]]);
}

/// A slot that could not be re-armed is tried again by the next sync.
#[test]
fn a_loss_whose_answer_fails_is_answered_by_the_next_sync() {
    // The reset is the first call; it is repeated until it finds nothing, and each slot is
    // switched off and on.
    for call in 1..11 {
        let machine = Machine::new();
        machine.store(20);
        let kvm = machine.follower.kvm.lock().unwrap();
        kvm.signal_after.set(Some(5));
        kvm.calls_to_failure.set(Some(call));
        drop(kvm);
        machine.map.sync_dirty_log(machine.region).unwrap_err();
        assert_eq!(machine.losses(), 1);
        machine.follower.kvm.lock().unwrap().calls_to_failure.set(None);
        assert_eq!(machine.take(), [[PAGES; 2]; 2], "marked all the same");
        machine.store(30);
        machine.sync();
        assert_eq!(machine.take(), [[PAGES; 2]; 2], "some may have been missed meanwhile");
        machine.store(30);
        machine.sync();
        assert_eq!(machine.take(), [[30; 2], [0; 2]]);
        machine.follower.check();
    }
}

/// A reset that KVM refuses leaves entries, and pages, as they were: a later one that ends
/// early is detected all the same, whether the recovery from the first loss failed, too, or not.
#[test]
fn a_refused_reset_and_a_short_one() {
    for refused in [1, 2] {
        let machine = Machine::new();
        machine.store(20);
        machine.follower.kvm.lock().unwrap().refused_resets.set(refused);
        machine.map.sync_dirty_log(machine.region).unwrap_err();
        assert_eq!(machine.losses(), 1);
        assert_eq!(machine.take(), [[PAGES; 2]; 2]);
        machine.store(20);
        // 20 entries are flagged, or 40.
        machine.follower.kvm.lock().unwrap().signal_after.set(Some(20 * u64::from(refused) - 10));
        machine.sync();
        assert_eq!(machine.losses(), 2);
        assert_eq!(machine.take(), [[PAGES; 2]; 2]);
        machine.store(10);
        machine.sync();
        assert_eq!(machine.take(), [[10; 2], [0; 2]]);
    }
}
