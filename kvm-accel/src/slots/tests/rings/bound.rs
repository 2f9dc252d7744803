//! A bound on what guests dirty, whose rings are filled at every moment.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use super::{KIND, Kind, Machine, Moments, runs};
use crate::dirty_ring::fake_ring::FakeRing;
use crate::error::KvmError;

/// Runs guests to bound after bound; by how many entries they passed the worst, and fell short of
/// it.
fn run_to_bounds(kind: Kind, seed: u64) -> (u64, u64) {
    let mut machine = Machine::new(kind, seed);
    let rings = (kind.vcpus * kind.size) as u64;
    let (mut passed, mut short) = (0, 0);
    for _ in 0..12 {
        let bound = rings + machine.kvm.0.borrow_mut().below(2 * rings);
        machine.set_still(true);
        machine.slots.set_dirty_bound(&machine.kvm, Some(bound)).unwrap();
        machine.set_still(false);
        let before = machine.kvm.0.borrow().pushed;
        while !machine.kvm.0.borrow().vcpus.iter().all(|vcpu| vcpu.bound) {
            machine.run(kind.size as u64);
            if machine.kvm.0.borrow_mut().below(4) == 0 {
                machine.harvest(); // somebody else's
            }
        }
        assert!(machine.is_whole());
        let pushed = machine.kvm.0.borrow().pushed - before;
        passed = passed.max(pushed.saturating_sub(bound));
        short = short.max(bound.saturating_sub(pushed));
    }
    (passed, short)
}

/// Rings that are filled almost to their ends, and not overrun.
const IN_ORDER: Kind = Kind { unchecked: 8, reserved: 8, ..KIND };

#[test]
fn guests_stop_before_they_pass_their_bound() {
    for (vcpus, random) in [(1, false), (1, true), (3, false), (4, true)] {
        let kind = Kind { vcpus, random, ..IN_ORDER };
        for seed in 0..runs() {
            let (passed, short) = run_to_bounds(kind, seed);
            assert_eq!(passed, 0, "{kind:?}, seed {seed}");
            assert!(short <= (vcpus * kind.size) as u64, "{kind:?}, seed {seed}: {short} short");
        }
    }
}

#[test]
fn guests_that_are_not_kept_out_pass_their_bound() {
    let kind = Kind { vcpus: 3, kept_out: false, ..IN_ORDER };
    assert!((0..10).any(|seed| run_to_bounds(kind, seed).0 > 0), "the runs do not see it");
}

#[test]
fn a_loss_of_entries_reaches_the_bound() {
    let mut machine = Machine::new(KIND, 0);
    machine.slots.set_dirty_bound(&machine.kvm, Some(1 << 40)).unwrap();
    machine.harvest();
    assert!(!machine.slots.bound_reached().load(Ordering::Relaxed));
    machine.slots.rings.overrun(0);
    machine.harvest();
    assert!(machine.slots.bound_reached().load(Ordering::Relaxed));
    machine.slots.set_dirty_bound(&machine.kvm, None).unwrap();
    assert!(!machine.slots.bound_reached().load(Ordering::Relaxed));
}

#[test]
fn a_bound_is_not_less_than_the_rings_and_grows_with_none() {
    let mut machine = Machine::new(Kind { vcpus: 2, ..KIND }, 0);
    let refused = machine.slots.set_dirty_bound(&machine.kvm, Some(511)).unwrap_err();
    assert!(matches!(refused, KvmError::DirtyBound { asked: 511, least: 512 }), "{refused}");
    machine.slots.set_dirty_bound(&machine.kvm, Some(512)).unwrap();
    assert!(!machine.slots.bound_reached().load(Ordering::Relaxed));
    // With another vCPU it could be passed before anybody looks.
    let ring = FakeRing::new(KIND.size, KIND.reserved);
    let (kvm, blind) = (machine.kvm.clone(), RefCell::default());
    machine.slots.add_ring(Moments { kvm, entries: ring.entries(), blind });
    assert!(machine.slots.bound_reached().load(Ordering::Relaxed));
}
