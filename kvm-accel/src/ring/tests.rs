//! Rings of a KVM of paper, overrun or not: every page is handed out, or a loss is seen;
//! and no ring stays full.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// KVM's side of a ring.
struct Kvm {
    entries: Arc<[Entry]>,
    dirty: u32,
    reset: u32,
}

/// Entries that KVM keeps free (KVM_DIRTY_RING_RSVD_ENTRIES).
const RESERVED: u32 = 64;

impl Kvm {
    fn new(size: usize) -> (Self, Ring<Arc<[Entry]>>) {
        let entries: Arc<[Entry]> = (0..size).map(|_| Entry::default()).collect();
        (Self { entries: entries.clone(), dirty: 0, reset: 0 }, Ring::new(entries))
    }

    fn size(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap()
    }

    fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize % self.entries.len()]
    }

    fn is_full(&self) -> bool {
        self.dirty.wrapping_sub(self.reset) >= self.size() - RESERVED
    }

    /// Puts a page in, over whatever is there.
    fn push(&mut self, page: u64) {
        let entry = self.entry(self.dirty);
        entry.page.store(page, Ordering::Relaxed);
        entry.flags.store(DIRTY, Ordering::Release);
        self.dirty = self.dirty.wrapping_add(1);
    }

    /// KVM_RESET_DIRTY_RINGS.
    fn reset_rings(&mut self) -> u64 {
        let mut count = 0;
        while self.entry(self.reset).flags.load(Ordering::Acquire) & RESET != 0 {
            self.entry(self.reset).flags.store(0, Ordering::Release);
            self.reset = self.reset.wrapping_add(1);
            count += 1;
        }
        count
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Stores to as many fresh pages; KVM looks whether the ring is full only after so
    /// many.
    Store {
        pages: u64,
        unchecked: u64,
    },
    Harvest,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..200u64, 1..20u64).prop_map(|(pages, unchecked)| Step::Store { pages, unchecked }),
        1 => (1..3000u64, 1..1200u64).prop_map(|(pages, unchecked)| Step::Store { pages, unchecked }),
        2 => Just(Step::Harvest),
    ]
}

struct Machine {
    kvm: Kvm,
    ring: Ring<Arc<[Entry]>>,
    /// Stored and not yet harvested.
    pending: BTreeSet<u64>,
    losses: u64,
}

impl Machine {
    fn harvest(&mut self) -> Taken {
        let pending = &mut self.pending;
        let taken = self.ring.take(|_, page| {
            pending.remove(&page);
        });
        let reset = self.kvm.reset_rings();
        if reset < taken.flagged {
            self.ring.displace();
        }
        if taken.overrun || reset < taken.flagged {
            self.lose();
        }
        taken
    }

    /// Everything is marked.
    fn lose(&mut self) {
        self.losses += 1;
        self.pending.clear();
    }

    /// What is done when KVM says that the ring is full.
    fn drain(&mut self) {
        let mut tries = 0;
        while self.kvm.is_full() {
            tries += 1;
            assert!(tries < 200, "the ring stays full");
            if self.harvest().entries == 0 {
                self.lose();
                self.ring.displace();
                if self.harvest().entries == 0 {
                    self.ring.flag_quarter();
                    self.kvm.reset_rings();
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_not_handed_out_is_seen_to_be_lost(
        size in prop_oneof![Just(256usize), Just(1024)],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (kvm, ring) = Kvm::new(size);
        let mut machine = Machine { kvm, ring, pending: BTreeSet::new(), losses: 0 };
        let (mut fresh, mut overruns) = (0, 0);
        for step in steps {
            match step {
                Step::Store { pages, unchecked } => {
                    for n in 1..=pages {
                        machine.kvm.push(fresh);
                        machine.pending.insert(fresh);
                        fresh += 1;
                        let used = machine.kvm.dirty.wrapping_sub(machine.kvm.reset);
                        overruns += u64::from(used > machine.kvm.size());
                        if n % unchecked == 0 {
                            machine.drain();
                        }
                    }
                    machine.drain();
                }
                Step::Harvest => {
                    machine.harvest();
                }
            }
        }
        machine.harvest();
        prop_assert!(machine.pending.is_empty(), "{:?} are lost unseen", machine.pending);
        // A ring that was overrun is as good as any other again.
        let mut losses = 0;
        for cycle in 0..100 {
            for page in 0..10 {
                machine.kvm.push(fresh + page);
                machine.pending.insert(fresh + page);
            }
            machine.drain();
            machine.harvest();
            prop_assert!(machine.pending.is_empty());
            if cycle == 50 {
                losses = machine.losses;
            }
        }
        prop_assert_eq!(machine.losses, losses, "losses do not end");
        if overruns == 0 && machine.losses > 0 {
            // A ring that is filled to the last entry is taken for an overrun.
            prop_assert!(fresh >= size as u64);
        }
    }
}

#[test]
fn a_ring_that_is_never_overrun_loses_nothing() {
    let (kvm, ring) = Kvm::new(1024);
    let mut machine = Machine { kvm, ring, pending: BTreeSet::new(), losses: 0 };
    for page in 0..100_000 {
        machine.kvm.push(page);
        machine.pending.insert(page);
        if machine.kvm.is_full() {
            assert_eq!(machine.harvest().entries, 1024 - 64);
        }
    }
    machine.harvest();
    assert!(machine.pending.is_empty());
    assert_eq!(machine.losses, 0);
}
