//! Rings of a KVM of paper, overrun or not: every page is handed out, or a loss is seen;
//! and no ring stays full.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::paper::PaperRing;
use super::*;

/// Entries that KVM keeps free (KVM_DIRTY_RING_RSVD_ENTRIES).
const RESERVED: u32 = 64;

fn ring_of(size: usize) -> (PaperRing, Ring<Arc<[Entry]>>) {
    let kvm = PaperRing::new(size, RESERVED);
    let ring = Ring::new(kvm.entries());
    (kvm, ring)
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
    /// KVM ends the reset early, and is asked again.
    ShortHarvest {
        most: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..200u64, 1..20u64).prop_map(|(pages, unchecked)| Step::Store { pages, unchecked }),
        1 => (1..3000u64, 1..1200u64).prop_map(|(pages, unchecked)| Step::Store { pages, unchecked }),
        2 => Just(Step::Harvest),
        1 => (0..300u64).prop_map(|most| Step::ShortHarvest { most }),
    ]
}

struct Machine {
    kvm: PaperRing,
    ring: Ring<Arc<[Entry]>>,
    /// Stored and not yet harvested.
    pending: BTreeSet<u64>,
    losses: u64,
}

impl Machine {
    fn harvest(&mut self) -> Taken {
        self.harvest_most(u64::MAX)
    }

    fn harvest_most(&mut self, most: u64) -> Taken {
        let pending = &mut self.pending;
        let taken = self.ring.take(|_, page| {
            pending.remove(&page);
        });
        let reset = self.kvm.reset(most).len() as u64;
        self.kvm.reset(u64::MAX);
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
                    self.kvm.reset(u64::MAX);
                    self.ring.retract();
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
        let (kvm, ring) = ring_of(size);
        let mut machine = Machine { kvm, ring, pending: BTreeSet::new(), losses: 0 };
        let (mut fresh, mut overruns, mut short) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Store { pages, unchecked } => {
                    for n in 1..=pages {
                        machine.kvm.push(0, fresh);
                        machine.pending.insert(fresh);
                        fresh += 1;
                        overruns += u64::from(machine.kvm.is_overrun());
                        if n % unchecked == 0 {
                            machine.drain();
                        }
                    }
                    machine.drain();
                }
                Step::Harvest => {
                    machine.harvest();
                }
                Step::ShortHarvest { most } => {
                    machine.harvest_most(most);
                    short += 1;
                }
            }
        }
        machine.harvest();
        prop_assert!(machine.pending.is_empty(), "{:?} are lost unseen", machine.pending);
        // A ring that was overrun is as good as any other again.
        let mut losses = 0;
        for cycle in 0..100 {
            for page in 0..10 {
                machine.kvm.push(0, fresh + page);
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
        if overruns == 0 && short == 0 && machine.losses > 0 {
            // A ring that is filled to the last entry is taken for an overrun.
            prop_assert!(fresh >= size as u64);
        }
    }
}

#[test]
fn a_ring_that_is_never_overrun_loses_nothing() {
    let (kvm, ring) = ring_of(1024);
    let mut machine = Machine { kvm, ring, pending: BTreeSet::new(), losses: 0 };
    for page in 0..100_000 {
        machine.kvm.push(0, page);
        machine.pending.insert(page);
        assert_eq!(machine.ring.seen(), page + 1);
        if machine.kvm.is_full() {
            assert_eq!(machine.harvest().entries, 1024 - 64);
        }
    }
    machine.harvest();
    assert!(machine.pending.is_empty());
    assert_eq!(machine.losses, 0);
}
