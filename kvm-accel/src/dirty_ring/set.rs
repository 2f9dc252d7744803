//! The dirty rings of all vCPUs of a machine.
//!
//! The order that loses nothing (from the authors of the ring): entries are taken, then
//! KVM_RESET_DIRTY_RINGS write-protects their pages again, and only then are the pages published to
//! consumers, who read them. A store before the reset is in what they read; a store after it is a
//! new entry.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dirty_ring::ring::{Entries, Ring};
use crate::stats::DirtyLogStats;
use crate::sys::ioctl::SlotCalls;

/// After so many resets in a row that reset nothing, nothing is left to be reset. A single one
/// proves little: an event that no signal mask blocks (SIGSTOP, a freezer, work of io_uring) ends a
/// reset before its first entry, without an error. The kernel handles that event before the next
/// call.
const EMPTY_RESETS: u32 = 16;

/// A vCPU's side of its ring.
#[derive(Clone, Debug, Default)]
pub(crate) struct RingOfVcpu {
    /// Its number among the machine's; 0 if there are no rings.
    pub(crate) number: usize,
    moves: Arc<AtomicU64>,
}

impl RingOfVcpu {
    /// A count that changes when KVM's reset index is about to move, and when it has moved. If it
    /// is the same before the guest was entered and after KVM called the ring full, the ring was
    /// full the whole time.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }
}

/// The rings of all vCPUs, whose entries are in `E`, and the entries last taken from them.
#[derive(Debug)]
pub(crate) struct Rings<E> {
    rings: Vec<Ring<E>>,
    /// (slot, page) of the entries last taken; kept to reuse its memory.
    pub(crate) found: Vec<(u32, u64)>,
    /// How many of them are of each ring, in the order of the rings.
    counts: Vec<usize>,
}

impl<E> Default for Rings<E> {
    fn default() -> Self {
        Self { rings: Vec::new(), found: Vec::new(), counts: Vec::new() }
    }
}

impl<E: Entries> Rings<E> {
    /// Adds the ring of a new vCPU, which is empty.
    pub(crate) fn add(&mut self, entries: E) -> RingOfVcpu {
        let ring = Ring::new(entries);
        let handle = RingOfVcpu { number: self.rings.len(), moves: ring.moves().clone() };
        self.rings.push(ring);
        handle
    }

    /// Takes the entries of all rings into `found`, and resets them, which write-protects their
    /// pages. Returns whether entries may be lost: then call [`realign`](Self::realign).
    ///
    /// # Errors
    ///
    /// If KVM_RESET_DIRTY_RINGS fails: `found` is valid all the same, but entries may be lost.
    pub(crate) fn take(
        &mut self,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> io::Result<bool> {
        let Self { rings, found, counts } = self;
        found.clear();
        counts.clear();
        stats.reaps.count(|| {
            let takes =
                rings.iter_mut().map(|ring| ring.take(|slot, page| found.push((slot, page))));
            counts.extend(takes);
        });
        self.reset(vm, stats)
    }

    /// Resets what is flagged. Returns whether entries may be lost.
    ///
    /// A call that ends early, for a signal, may have freed entries whose pages it has not
    /// write-protected. One that ends after the last entry looks complete: so signals are blocked
    /// during the call ([`SlotCalls::reset_rings`]).
    ///
    /// Events that no mask blocks end a call, too: SIGSTOP, ptrace, a freezer, and work of io_uring
    /// for the calling thread. If one arrives between the last entry and the write-protection of
    /// the last batch (entries of 64 adjacent pages), KVM returns the full count, and these pages
    /// stay writable without an entry. User space cannot detect it; the window is a few
    /// instructions of the kernel. [`DirtyTracking::Ring`](crate::DirtyTracking::Ring) documents
    /// it.
    fn reset(&mut self, vm: &impl SlotCalls, stats: &mut DirtyLogStats) -> io::Result<bool> {
        let flagged: usize = self.rings.iter().map(Ring::flagged).sum();
        let complete = flagged == 0 || self.reset_once(vm, stats)? == flagged as u64;
        if complete {
            let mut taken = &self.found[..];
            let counts = self.counts.iter().copied().chain(std::iter::repeat(0));
            for (ring, count) in self.rings.iter_mut().zip(counts) {
                let (own, rest) = taken.split_at(count);
                ring.settle(own);
                taken = rest;
            }
        }
        Ok(!complete || self.rings.iter().any(Ring::is_overrun))
    }

    /// One call of KVM_RESET_DIRTY_RINGS. Returns how many entries KVM says that it has reset.
    fn reset_once(&self, vm: &impl SlotCalls, stats: &mut DirtyLogStats) -> io::Result<u64> {
        self.rings.iter().for_each(Ring::count_move);
        let count = stats.resets.count(|| vm.reset_rings());
        self.rings.iter().for_each(Ring::count_move);
        match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            count => count,
        }
    }

    /// After a loss: finds KVM's indices in the rings again. No vCPU may run guest code meanwhile,
    /// and the caller has to write-protect and mark all pages afterwards. Returns whether all rings
    /// are in order, or will be with the next entry; a ring that KVM pushes to all the same is not.
    pub(crate) fn realign(
        &mut self,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> io::Result<bool> {
        self.rings.iter_mut().for_each(Ring::check_guard);
        if self.rings.iter().any(|ring| ring.flagged() > 0) {
            self.rings.iter().for_each(Ring::flag_again);
            let mut empty = 0;
            while empty < EMPTY_RESETS {
                empty = if self.reset_once(vm, stats)? > 0 { 0 } else { empty + 1 };
            }
            self.rings.iter_mut().for_each(Ring::settle_again);
        }
        let overrun = |ring: &&mut Ring<E>| ring.is_overrun();
        self.rings.iter_mut().filter(overrun).for_each(Ring::sweep);
        Ok(!self.rings.iter().any(Ring::is_overrun))
    }

    /// How many entries were taken from all rings so far.
    pub(crate) fn taken(&self) -> u64 {
        self.rings.iter().map(Ring::handed_out).sum()
    }

    /// How many entries all rings have.
    pub(crate) fn capacity(&self) -> u64 {
        self.rings.iter().map(Ring::count).sum()
    }

    /// How many entries KVM has pushed to ring `number` so far.
    pub(crate) fn seen(&self, number: usize) -> u64 {
        self.rings.get(number).map_or(0, Ring::seen)
    }

    /// Whether ring `number` has free entries that KVM counts as used.
    pub(crate) fn is_displaced(&self, number: usize) -> bool {
        self.rings.get(number).is_some_and(Ring::is_displaced)
    }

    /// Notes that entries of ring `number` were overwritten.
    pub(crate) fn overrun(&mut self, number: usize) {
        self.rings.get_mut(number).into_iter().for_each(Ring::overrun);
    }

    /// For a displaced ring that KVM calls full and in which no entry is DIRTY: lets KVM's reset
    /// index pass a quarter of it. Its vCPU must not be in the guest. Returns whether entries may
    /// be lost.
    pub(crate) fn skip_quarter(
        &mut self,
        number: usize,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> io::Result<bool> {
        match self.rings.get_mut(number) {
            Some(ring) if ring.flagged() == 0 => ring.skip_quarter(),
            _ => return Ok(false),
        }
        self.counts.fill(0); // nothing is taken with what is flagged now
        self.reset(vm, stats)
    }
}
