//! Rings of a fake KVM that pushes at every moment: between any two of our accesses to a
//! ring, while KVM resets entries and before it has write-protected their pages, between rings,
//! and during the recovery from a loss. A copy of memory that is kept by harvests equals memory
//! whenever the vCPUs are stopped.
//!
//! `RING_RUNS=1000` for more runs of each kind, and for the largest rings.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use ram_block::{DirtyClaim, DirtyClient, PageSize, RamBlock};

use crate::dirty_ring::fake_ring::FakeRing;
use crate::dirty_ring::ring::Entries;
use crate::dirty_ring::set::RingOfVcpu;
use crate::slots::bitmap::SlotBitmap;
use crate::slots::table::{Mode, Slot, Slots};
use crate::sys::dirty_gfn::Entry;
use crate::sys::ioctl::{SlotCalls, SlotRegion};

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

/// What is done, and what goes wrong.
#[derive(Clone, Copy, Debug)]
struct Kind {
    vcpus: usize,
    /// Entries of a ring, and those that KVM keeps free.
    size: usize,
    reserved: u32,
    /// Whether guests store to random pages, or to one after another.
    random: bool,
    /// KVM checks whether a ring is full after so many stores at the most.
    unchecked: u64,
    /// Whether guests are stopped while they are kept out, as they should be.
    kept_out: bool,
    /// Whether the guard is checked: if not, losses are not detected.
    guard: bool,
    /// Whether KVM ends resets early, before an entry, as it does for what cannot be blocked
    /// (SIGSTOP, a freezer, work of io_uring): without an error, also if it has reset nothing.
    interrupted: bool,
}

const KIND: Kind = Kind {
    vcpus: 1,
    size: 256,
    reserved: 64,
    random: false,
    unchecked: 100,
    kept_out: true,
    guard: true,
    interrupted: false,
};

struct PaperVcpu {
    ring: FakeRing,
    /// The next page, if not random.
    next: usize,
    /// Stores until KVM checks whether the ring is full.
    budget: u64,
    /// Out of the guest, as the ring is full.
    stopped: bool,
    /// Out of the guest, as the bound is reached.
    bound: bool,
}

/// A guest's memory, of which KVM has one slot.
struct Memory {
    kind: Kind,
    vcpus: Vec<PaperVcpu>,
    /// Pages that are not write-protected.
    open: Vec<bool>,
    /// Pages whose entries are freed, and that are about to be write-protected.
    closing: Vec<usize>,
    logged: bool,
    /// How often each page was stored to.
    version: Vec<u32>,
    still: bool,
    /// How many entries were pushed.
    pushed: u64,
    bound_reached: Arc<AtomicBool>,
    seed: u64,
}

impl Memory {
    fn below(&mut self, limit: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % limit
    }

    /// A moment at which guests may have run.
    fn moment(&mut self) {
        if self.still {
            return;
        }
        for vcpu in 0..self.vcpus.len() {
            let stores = match self.below(64) {
                0 => self.below(300),
                1..4 => self.below(30),
                4..16 => self.below(3),
                _ => continue,
            };
            self.store(vcpu, stores);
        }
        if self.below(16) == 0 {
            self.protect();
        }
    }

    /// What vCPUs do before they enter the guest.
    fn look_at_the_bound(&mut self, vcpus: Range<usize>) {
        let is_reached = self.bound_reached.load(Ordering::Relaxed);
        let looking = self.vcpus.iter_mut().enumerate().filter(|(n, _)| vcpus.contains(n));
        looking.for_each(|(_, vcpu)| vcpu.bound = is_reached);
    }

    fn protect(&mut self) {
        for page in self.closing.drain(..) {
            self.open[page] = false;
        }
    }

    fn store(&mut self, vcpu: usize, stores: u64) {
        let pages = self.open.len();
        for _ in 0..stores {
            if self.vcpus[vcpu].stopped || self.vcpus[vcpu].bound {
                return;
            }
            let page = if self.kind.random {
                usize::try_from(self.below(pages as u64)).unwrap()
            } else {
                let next = self.vcpus[vcpu].next;
                self.vcpus[vcpu].next = (next + 1) % pages;
                next
            };
            let vcpu = &mut self.vcpus[vcpu];
            if self.logged && !std::mem::replace(&mut self.open[page], true) {
                vcpu.ring.push(0, page as u64);
                self.pushed += 1;
            }
            self.version[page] += 1;
            vcpu.budget -= 1;
            if vcpu.budget == 0 {
                vcpu.stopped = vcpu.ring.is_full();
                vcpu.budget = 1 + self.seed % self.kind.unchecked;
            }
        }
    }
}

#[derive(Clone)]
struct Kvm(Rc<RefCell<Memory>>);

impl Kvm {
    /// Guests may run at this moment, unless KVM itself is in the middle of a store.
    fn moment(&self) {
        if let Ok(mut memory) = self.0.try_borrow_mut() {
            memory.moment();
        }
    }
}

/// The entries of a ring, between two accesses to which guests may run.
struct Moments {
    kvm: Kvm,
    entries: Arc<[Entry]>,
    /// The next read is the check of the guard, and finds nothing.
    blind: RefCell<bool>,
}

impl Entries for Moments {
    fn count(&self) -> usize {
        self.entries.len()
    }

    fn flags(&self, at: usize) -> u32 {
        self.kvm.moment();
        if self.blind.replace(false) {
            return 0;
        }
        self.entries.flags(at)
    }

    fn content(&self, at: usize) -> (u32, u64) {
        self.kvm.moment();
        self.entries.content(at)
    }

    fn set_flags(&self, at: usize, flags: u32) {
        self.kvm.moment();
        self.entries.set_flags(at, flags);
    }

    fn fence(&self) {
        // Only the guard is read after a fence.
        self.blind.replace(!self.kvm.0.borrow().kind.guard);
    }
}

impl SlotCalls for Kvm {
    fn get_dirty_log(&self, _: u32, _: u64, _: &mut [u64]) -> io::Result<()> {
        unreachable!("rings only")
    }

    fn clear_dirty_log(&self, _: u32, _: u64, _: u32, _: &[u64]) -> io::Result<()> {
        unreachable!("rings only")
    }

    fn exclude<T>(&self, work: impl FnOnce() -> T) -> T {
        let kept_out = self.0.borrow().kind.kept_out;
        let before = std::mem::replace(&mut self.0.borrow_mut().still, kept_out);
        let result = work();
        let mut memory = self.0.borrow_mut();
        memory.still = before;
        if kept_out {
            memory.look_at_the_bound(0..usize::MAX);
        }
        drop(memory);
        result
    }

    fn reset_rings(&self) -> io::Result<u64> {
        let (mut count, vcpus) = (0, self.0.borrow().vcpus.len());
        for vcpu in 0..vcpus {
            loop {
                if !self.0.borrow().vcpus[vcpu].ring.is_flagged() {
                    break;
                }
                let mut memory = self.0.borrow_mut();
                // Often at first, and in the middle of most.
                let odds = if count == 0 { 4 } else { 64 };
                if memory.kind.interrupted && memory.below(odds) == 0 {
                    // Freed, and not write-protected.
                    memory.closing.clear();
                    return Ok(count);
                }
                drop(memory);
                self.moment();
                let (_, page) = self.0.borrow().vcpus[vcpu].ring.content();
                self.moment();
                self.0.borrow_mut().vcpus[vcpu].ring.free();
                count += 1;
                self.moment();
                let mut memory = self.0.borrow_mut();
                let page = usize::try_from(page).unwrap();
                if page < memory.open.len() {
                    memory.closing.push(page);
                }
            }
            self.moment();
        }
        self.0.borrow_mut().protect();
        Ok(count)
    }

    fn set_slot(&self, region: SlotRegion, _: &RamBlock) -> io::Result<()> {
        self.moment();
        let mut memory = self.0.borrow_mut();
        memory.logged = region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0;
        memory.open.fill(false);
        drop(memory);
        self.moment();
        Ok(())
    }
}

struct Machine {
    kvm: Kvm,
    slots: Slots<Moments>,
    rings: Vec<RingOfVcpu>,
    /// Each ring's count of moves when its vCPU was entered.
    moves: Vec<u64>,
    block: Arc<RamBlock>,
    log: DirtyClaim,
    copy: Vec<u32>,
}

impl Machine {
    fn new(kind: Kind, seed: u64) -> Self {
        let pages = kind.size * 3 / 2;
        let vcpu = |n: usize| PaperVcpu {
            ring: FakeRing::new(kind.size, kind.reserved),
            next: n * pages / kind.vcpus,
            budget: 1,
            stopped: false,
            bound: false,
        };
        let kvm = Kvm(Rc::new(RefCell::new(Memory {
            kind,
            vcpus: (0..kind.vcpus).map(vcpu).collect(),
            open: vec![false; pages],
            closing: Vec::new(),
            logged: false,
            version: vec![0; pages],
            still: true,
            pushed: 0,
            bound_reached: Arc::default(),
            seed: (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        })));
        let size = pages as u64 * PageSize::host().bytes();
        let block = RamBlock::anonymous("ram", size).unwrap();
        let log = block.dirty().claim(CLIENT).unwrap();
        let mut slots = Slots::new(1, size, Mode::Rings { with_bitmap: false });
        let slot = Slot {
            id: 0,
            guest: 0,
            size,
            block: block.clone(),
            offset: 0,
            readonly: false,
            logged: true,
            uncleared: SlotBitmap::default(),
            uncleared_since: 0,
        };
        slot.create(&kvm).unwrap();
        slots.enter(0, slot);
        kvm.0.borrow_mut().bound_reached = slots.bound_reached().clone();
        let mapped: Vec<_> = kvm.0.borrow().vcpus.iter().map(|vcpu| vcpu.ring.entries()).collect();
        let moments = |entries| Moments { kvm: kvm.clone(), entries, blind: RefCell::default() };
        let rings = mapped.into_iter().map(|entries| slots.add_ring(moments(entries))).collect();
        let moves = vec![0; kind.vcpus];
        Self { kvm, slots, rings, moves, block, log, copy: vec![0; pages] }
    }

    fn set_still(&self, still: bool) {
        self.kvm.0.borrow_mut().still = still;
    }

    /// Guests run; those whose rings are full exit.
    fn run(&mut self, most: u64) {
        for vcpu in 0..self.rings.len() {
            let mut memory = self.kvm.0.borrow_mut();
            let stores = memory.below(most);
            memory.store(vcpu, stores);
            drop(memory);
            self.come_back(vcpu);
        }
    }

    /// What a vCPU does whose ring is full, until it is entered again.
    fn come_back(&mut self, vcpu: usize) {
        let mut tries = 0;
        while self.kvm.0.borrow().vcpus[vcpu].stopped {
            tries += 1;
            assert!(tries < 200, "the ring stays full");
            self.slots.ring_full(&self.kvm, &self.rings[vcpu], self.moves[vcpu]).unwrap();
            self.moves[vcpu] = self.rings[vcpu].moves();
            self.kvm.0.borrow_mut().look_at_the_bound(vcpu..vcpu + 1);
            // KVM checks first of all.
            let vcpu = &mut self.kvm.0.borrow_mut().vcpus[vcpu];
            vcpu.stopped = vcpu.ring.is_full();
        }
    }

    fn harvest(&mut self) {
        self.slots.take_rings(&self.kvm).unwrap();
        let harvest = self.log.snapshot_and_clear(0..self.block.pages()).unwrap();
        let memory = self.kvm.0.borrow();
        for page in harvest.commit().pages() {
            let page = usize::try_from(page).unwrap();
            self.copy[page] = memory.version[page];
        }
    }

    /// Whether the copy equals memory while the guests are stopped.
    fn is_whole(&mut self) -> bool {
        self.set_still(true);
        // Those whose rings became full at any moment since.
        (0..self.rings.len()).for_each(|vcpu| self.come_back(vcpu));
        self.harvest();
        let whole = self.copy == self.kvm.0.borrow().version;
        self.set_still(false);
        whole
    }
}

/// Whether pages were lost undetected, and how many losses were detected.
fn run(kind: Kind, seed: u64) -> (bool, u64) {
    let mut machine = Machine::new(kind, seed);
    machine.set_still(false);
    let stores = kind.size as u64 * 3 / 2;
    // Fewer for large rings, which take longer.
    for turn in 0..(100_000 / kind.size).clamp(12, 100) {
        machine.run(stores);
        machine.harvest();
        if turn % 3 == 0 && !machine.is_whole() {
            return (true, machine.slots.stats.ring_overruns);
        }
    }
    // Then the rings must be in order again: few stores, KVM checks after each, and no loss.
    let mut memory = machine.kvm.0.borrow_mut();
    memory.kind.unchecked = 1;
    memory.kind.interrupted = false;
    memory.vcpus.iter_mut().for_each(|vcpu| vcpu.budget = 1);
    drop(memory);
    let mut losses = 0;
    for turn in 0..40 {
        machine.set_still(true);
        machine.run(8);
        if !machine.is_whole() {
            return (true, machine.slots.stats.ring_overruns);
        }
        if turn == 20 {
            losses = machine.slots.stats.ring_overruns;
        }
    }
    assert_eq!(
        machine.slots.stats.ring_overruns, losses,
        "{kind:?}, seed {seed}: losses do not end"
    );
    (false, losses)
}

fn runs() -> u64 {
    std::env::var("RING_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

fn kinds() -> Vec<Kind> {
    let sizes: &[usize] = if runs() > 100 { &[256, 1024, 4096, 65_536] } else { &[256, 1024] };
    let mut kinds = Vec::new();
    for &size in sizes {
        for (vcpus, random) in [(1, false), (2, false), (1, true), (3, true)] {
            for reserved in [64, 0] {
                for unchecked in [100, 1100] {
                    let kind = Kind { vcpus, size, reserved, random, unchecked, ..KIND };
                    kinds.push(kind);
                    if size == 256 {
                        kinds.push(Kind { interrupted: true, ..kind });
                        kinds.push(Kind { kept_out: false, ..kind });
                    }
                }
            }
        }
    }
    kinds
}

#[test]
fn rings_that_are_overrun_at_any_moment_lose_nothing_unseen() {
    let mut losses = 0;
    for kind in kinds() {
        let before = losses;
        for seed in 0..runs() {
            let (lost, seen) = run(kind, seed);
            assert!(!lost, "{kind:?}, seed {seed}: pages are lost, {seen} losses seen");
            losses += seen;
        }
        println!("{kind:?}: {} losses seen", losses - before);
    }
    assert!(losses > 0, "no ring was overrun");
}

/// The same runs lose pages if the guard is not checked.
#[test]
fn the_runs_show_what_a_guard_is_for() {
    // Overrun by little, as a rule: what is overrun by much is also told by KVM's count.
    let kind = Kind { vcpus: 3, guard: false, unchecked: 300, ..KIND };
    // A ring may also stay full then, or its losses may not end.
    let is_lost = |seed| std::panic::catch_unwind(|| run(kind, seed)).is_ok_and(|(lost, _)| lost);
    let lost = (0..40).filter(|seed| is_lost(*seed)).count();
    assert!(lost > 0, "the runs do not see the loss");
}

mod bound;
