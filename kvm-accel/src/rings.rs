//! The dirty rings of all vCPUs of a machine.
//!
//! The order that loses nothing (rule of the authors of the ring): entries are taken, then
//! KVM_RESET_DIRTY_RINGS write-protects their pages again, and only then are the pages
//! published to consumers, who read them. A store before the reset is in what they read; a
//! store after it is a new entry.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ioctl::SlotCalls;
use crate::ring::{Entry, Ring, Taken};
use crate::stats::DirtyLogStats;

/// All rings, whose entries are in `E`, and what was last found in them.
#[derive(Debug)]
pub(crate) struct Rings<E> {
    rings: Vec<Ring<E>>,
    /// (slot, page) of what was found; kept, so that nothing is allocated after a while.
    pub(crate) found: Vec<(u32, u64)>,
    /// Entries that are flagged, and that KVM has refused to reset.
    owed: u64,
    /// Counts the beginnings and ends of walks over the rings.
    pub(crate) walks: Arc<AtomicU64>,
}

impl<E> Default for Rings<E> {
    fn default() -> Self {
        Self { rings: Vec::new(), found: Vec::new(), owed: 0, walks: Arc::default() }
    }
}

impl<E: AsRef<[Entry]>> Rings<E> {
    /// Adds the ring of a new vCPU, which is empty; returns the ring's number.
    pub(crate) fn add(&mut self, entries: E) -> usize {
        self.rings.push(Ring::new(entries));
        self.rings.len() - 1
    }

    /// Takes the entries of all rings into `found`. Returns whether some may be lost.
    ///
    /// # Errors
    ///
    /// If KVM does not reset: what was found is found all the same, but entries may be lost.
    pub(crate) fn take(
        &mut self,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> io::Result<bool> {
        self.found.clear();
        // At both ends: whoever is let in before the end of this walk finds another count
        // when he comes out.
        self.walks.fetch_add(1, Ordering::AcqRel);
        let result = self.walk(vm, stats);
        self.walks.fetch_add(1, Ordering::AcqRel);
        result
    }

    fn walk(&mut self, vm: &impl SlotCalls, stats: &mut DirtyLogStats) -> io::Result<bool> {
        let Self { rings, found, owed, .. } = self;
        let taken = stats.reaps.count(|| {
            let mut all = Taken::default();
            for ring in rings.iter_mut() {
                all += ring.take(|slot, page| found.push((slot, page)));
            }
            all
        });
        // Those that an earlier call refused are not to be taken for these.
        *owed += taken.flagged;
        let complete = reset(vm, *owed, stats)?;
        *owed = 0;
        if !complete {
            // Whose entries are left, nobody says.
            rings.iter_mut().for_each(Ring::displace);
        }
        Ok(taken.overrun || !complete)
    }

    /// How many entries ring `number` had so far.
    pub(crate) fn seen(&self, number: usize) -> u64 {
        self.rings.get(number).map_or(0, Ring::seen)
    }

    /// After a loss: entries may be anywhere in ring `number`.
    pub(crate) fn displace(&mut self, number: usize) {
        self.rings.get_mut(number).into_iter().for_each(Ring::displace);
    }

    /// For a ring that KVM calls full and in which there is nothing: frees a part of it. Its
    /// vCPU is not in the guest.
    pub(crate) fn unstick(
        &mut self,
        number: usize,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) {
        let Some(ring) = self.rings.get_mut(number) else { return };
        // KVM's place may be in any quarter.
        for _ in 0..4 {
            ring.flag_quarter();
            let freed = stats.resets.count(|| vm.reset_rings());
            ring.retract();
            if !matches!(freed, Ok(0)) {
                return;
            }
        }
    }
}

/// Resets the `flagged` entries; whether KVM found all of them in one call.
///
/// A call that ends early, for a signal, may have freed entries whose pages it has not
/// write-protected: what is left is reset, but the call does not count as complete. One that
/// ends after the last entry looks complete: so signals are kept off meanwhile.
fn reset(vm: &impl SlotCalls, flagged: u64, stats: &mut DirtyLogStats) -> io::Result<bool> {
    if flagged == 0 {
        return Ok(true);
    }
    let mut calls = 0;
    let mut left = flagged;
    while left > 0 && calls < 4 {
        calls += 1;
        match stats.resets.count(|| vm.reset_rings()) {
            Ok(0) => break,
            Ok(count) => left = left.saturating_sub(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left == 0 && calls == 1)
}
