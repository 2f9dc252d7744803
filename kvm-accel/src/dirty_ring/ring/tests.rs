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
            let mut found = Vec::new();
            let taken = ring.take(|slot, page| found.push((slot, page)));
            assert_eq!(kvm.reset(u64::MAX).len(), taken);
            ring.settle(&found);
            pages.extend(found.into_iter().map(|(_, page)| page));
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
        let mut found = Vec::new();
        ring.take(|slot, page| found.push((slot, page)));
        kvm.reset(u64::MAX);
        ring.settle(&found);
        assert_eq!(ring.is_overrun(), overrun, "{pushes} pushes");
    }
}

/// A ring of 256 that was full, taken and reset, and what was taken.
fn emptied(kvm: &mut FakeRing) -> (Ring<impl Entries + use<>>, Vec<(u32, u64)>) {
    let (mut ring, mut found) = (Ring::new(kvm.entries()), Vec::new());
    let mut page = 0;
    while !kvm.is_full() {
        kvm.push(0, page);
        page += 1;
    }
    ring.take(|slot, page| found.push((slot, page)));
    (ring, found)
}

/// The vCPU may fill what was freed before our thread looks at the guard.
#[test]
fn a_ring_that_is_full_again_at_once_is_not_overrun() {
    let mut kvm = FakeRing::new(256, RESERVED);
    let (mut ring, found) = emptied(&mut kvm);
    kvm.reset(u64::MAX);
    let pages: Vec<_> = (1000..1192).collect();
    pages.iter().for_each(|page| kvm.push(0, *page));
    assert!(kvm.is_full());
    ring.settle(&found);
    assert!(!ring.is_overrun());
    let mut next = Vec::new();
    ring.take(|_, page| next.push(page));
    assert_eq!(next, pages);
}

/// KVM pushes over an entry that it is about to free; over the first or the last of all, or in the
/// middle.
#[test]
fn a_push_over_an_entry_that_is_being_freed_is_an_overrun() {
    for at in [0, 1, 100, 190, 191] {
        let mut kvm = FakeRing::new(256, RESERVED);
        let (mut ring, found) = emptied(&mut kvm);
        kvm.reset(at);
        assert!(kvm.is_flagged());
        for page in 0..RESERVED as u64 + at + 1 {
            kvm.push(0, 2000 + page);
        }
        kvm.free();
        kvm.reset(u64::MAX);
        ring.settle(&found);
        assert!(ring.is_overrun(), "at {at}");
    }
}
