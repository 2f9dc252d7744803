//! The dirty rings of all vCPUs of a machine.
//!
//! The order that loses nothing (rule of the authors of the ring): entries are taken, then
//! KVM_RESET_DIRTY_RINGS write-protects their pages again, and only then are the pages
//! published to consumers, who read them. A store before the reset is in what they read; a
//! store after it is a new entry.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::KVM_DIRTY_LOG_PAGE_OFFSET;
use kvm_ioctls::VcpuFd;
use ram_block::PageSize;

use crate::ioctl::{MappedEntries, SlotCalls};
use crate::ring::{Entry, Ring, Taken};
use crate::stats::DirtyLogStats;

/// All rings, and what was last found in them.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    rings: Vec<Ring<MappedEntries>>,
    /// (slot, page) of what was found; kept, so that nothing is allocated after a while.
    pub(crate) found: Vec<(u32, u64)>,
    /// Of each ring, whether entries of it were to be reset the last time.
    flagged: Vec<bool>,
    /// Counts the beginnings and ends of walks over the rings.
    pub(crate) walks: Arc<AtomicU64>,
}

impl Rings {
    /// Maps the ring of a new vCPU; returns the ring's number.
    pub(crate) fn add(&mut self, vcpu: &VcpuFd, entries: u32) -> io::Result<usize> {
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) << PageSize::host().shift();
        let entries = MappedEntries::new(vcpu, offset, entries)?;
        self.rings.push(Ring::new(entries));
        Ok(self.rings.len() - 1)
    }

    /// Takes the entries of all rings into `found`. Returns whether some may be lost.
    ///
    /// # Errors
    ///
    /// If KVM does not reset; what was found is found all the same, and counts as lost.
    pub(crate) fn take(
        &mut self,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> Result<bool, (io::Error, bool)> {
        self.found.clear();
        // At both ends: whoever is let in before the end of this walk finds another count
        // when he comes out.
        self.walks.fetch_add(1, Ordering::AcqRel);
        let result = self.walk(vm, stats);
        self.walks.fetch_add(1, Ordering::AcqRel);
        result
    }

    fn walk(
        &mut self,
        vm: &impl SlotCalls,
        stats: &mut DirtyLogStats,
    ) -> Result<bool, (io::Error, bool)> {
        let Self { rings, found, flagged, .. } = self;
        flagged.clear();
        let taken = stats.reaps.count(|| {
            let mut all = Taken::default();
            for ring in rings.iter_mut() {
                let taken = ring.take(|slot, page| found.push((slot, page)));
                flagged.push(taken.flagged > 0);
                all += taken;
            }
            all
        });
        let complete = reset(vm, taken.flagged, stats).map_err(|error| (error, true))?;
        if !complete {
            // Whose entries are left, nobody says.
            let left = rings.iter_mut().zip(flagged).filter(|(_, flagged)| **flagged);
            left.for_each(|(ring, _)| ring.displace());
        }
        Ok(taken.overrun || !complete)
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
            match stats.resets.count(|| vm.reset_rings()) {
                Ok(0) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// Resets the `flagged` entries; whether KVM found all of them in one call.
///
/// A call that ends early, for a signal, may have freed entries whose pages it has not
/// write-protected: signals are kept off meanwhile, and what is left is reset, but the call
/// does not count as complete.
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

impl AsRef<[Entry]> for MappedEntries {
    fn as_ref(&self) -> &[Entry] {
        self.entries()
    }
}
