//! The dirty bound: all vCPUs stop before they have dirtied more pages than were asked for.
//!
//! Between two takes of all rings a vCPU pushes no more entries than its ring has. So it is enough
//! to look at each take, while no guest runs: if every ring, filled once more, could bring the sum
//! past the bound, no vCPU enters its guest again. A take happens when a ring is full, and when
//! anybody syncs.
//!
//! A vCPU may still have to complete an access then. What that pushes fits into the entries that
//! KVM keeps free in each ring (64 at least), which the sum above counts as filled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bound on what all vCPUs dirty; under the lock of the slots.
#[derive(Debug, Default)]
pub(crate) struct DirtyBound {
    /// The most entries that may be taken from all rings, counted from the machine's first.
    most: Option<u64>,
    reached: Arc<AtomicBool>,
}

impl DirtyBound {
    pub(crate) fn is_on(&self) -> bool {
        self.most.is_some()
    }

    /// What vCPUs look at before they enter the guest.
    pub(crate) fn reached(&self) -> &Arc<AtomicBool> {
        &self.reached
    }

    /// Removes the bound, or sets it anew: `pages` from now on, as `taken` entries were taken
    /// before. No guest runs, and all rings are empty.
    pub(crate) fn set(&mut self, pages: Option<u64>, taken: u64) {
        self.most = pages.map(|pages| taken.saturating_add(pages));
        self.reached.store(false, Ordering::Release);
    }

    /// Looks whether guests may go on: `taken` entries were taken until now, and all rings together
    /// have `entries`. Call it while no guest runs, with empty rings.
    pub(crate) fn check(&self, taken: u64, entries: u64) {
        if self.most.is_some_and(|most| taken.saturating_add(entries) > most) {
            self.stop();
        }
    }

    /// Lets no vCPU enter its guest: what was dirtied is not known.
    pub(crate) fn stop(&self) {
        if self.is_on() {
            self.reached.store(true, Ordering::Release);
        }
    }
}
