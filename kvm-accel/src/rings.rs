//! The dirty rings of all vCPUs of a machine.
//!
//! The order that loses nothing (rule of the authors of the ring): entries are taken, then
//! KVM_RESET_DIRTY_RINGS write-protects their pages again, and only then are the pages
//! published to consumers, who read them. A store before the reset is in what they read; a
//! store after it is a new entry.

use std::io;

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
}

impl Rings {
    /// Maps the ring of a new vCPU.
    pub(crate) fn add(&mut self, vcpu: &VcpuFd, entries: u32) -> io::Result<()> {
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) << PageSize::host().shift();
        let entries = MappedEntries::new(vcpu, offset, entries)?;
        self.rings.push(Ring::new(entries));
        Ok(())
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
        let Self { rings, found } = self;
        let taken = stats.reaps.count(|| {
            let mut all = Taken::default();
            for ring in rings {
                all += ring.take(|slot, page| found.push((slot, page)));
            }
            all
        });
        let reset = reset(vm, taken.flagged, stats).map_err(|error| (error, true))?;
        Ok(taken.overrun || reset < taken.flagged)
    }

    /// After a loss: entries may be anywhere in the rings.
    pub(crate) fn displace(&mut self) {
        self.rings.iter_mut().for_each(Ring::displace);
    }

    /// For a ring that KVM calls full and in which there is nothing: frees a part of it.
    pub(crate) fn unstick(&mut self, vm: &impl SlotCalls, stats: &mut DirtyLogStats) {
        // KVM's place may be in any quarter.
        for _ in 0..4 {
            self.rings.iter_mut().for_each(Ring::flag_quarter);
            if !matches!(reset(vm, 1, stats), Ok(0)) {
                return;
            }
        }
    }
}

/// Resets until `flagged` entries are reset or KVM finds no more.
fn reset(vm: &impl SlotCalls, flagged: u64, stats: &mut DirtyLogStats) -> io::Result<u64> {
    let mut done = 0;
    // A signal that waits for the thread may end a call early; it does not wait any more at
    // the next.
    let mut in_vain = 0;
    while done < flagged && in_vain < 3 {
        match stats.resets.count(|| vm.reset_rings()) {
            Ok(0) => in_vain += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => in_vain += 1,
            Err(error) => return Err(error),
            Ok(count) => {
                done += count;
                in_vain = 0;
            }
        }
    }
    Ok(done)
}

impl AsRef<[Entry]> for MappedEntries {
    fn as_ref(&self) -> &[Entry] {
        self.entries()
    }
}
