//! Rings of a fake KVM that are not overrun. Those that are, while KVM pushes at every
//! moment: `slots/tests/rings.rs`.

use super::*;
use crate::dirty_ring::fake_ring::FakeRing;

/// Entries that KVM keeps free (KVM_DIRTY_RING_RSVD_ENTRIES).
const RESERVED: u32 = 64;

#[test]
fn a_ring_that_is_never_overrun_loses_nothing() {
    let mut kvm = FakeRing::new(1024, RESERVED);
    let mut ring = Ring::new(kvm.entries());
    let mut pages = Vec::new();
    for page in 0..100_000 {
        kvm.push(0, page);
        assert_eq!(ring.seen(), page + 1);
        if kvm.is_full() || page == 99_999 {
            let taken = ring.take(|slot, page| {
                assert_eq!(slot, 0);
                pages.push(page);
            });
            assert_eq!(kvm.reset(u64::MAX).len() as u64, taken);
            ring.settle();
            assert_eq!((ring.is_overrun(), ring.is_displaced()), (false, false));
        }
    }
    assert!(pages.into_iter().eq(0..100_000));
}

/// Without the entries that KVM keeps free, a full ring looks like one that went round.
#[test]
fn a_ring_that_is_full_to_the_guard_counts_as_overrun() {
    for (pushes, overrun) in [(62, false), (63, true), (64, true), (65, true)] {
        let mut kvm = FakeRing::new(64, 0);
        let mut ring = Ring::new(kvm.entries());
        (0..pushes).for_each(|page| kvm.push(0, page));
        ring.take(|_, _| ());
        kvm.reset(u64::MAX);
        ring.settle();
        assert_eq!(ring.is_overrun(), overrun, "{pushes} pushes");
    }
}
