//! What tracking has cost.

use std::time::{Duration, Instant};

/// How often something was done, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallStats {
    /// Number of calls.
    pub calls: u64,
    /// Time of all calls.
    pub time: Duration,
}

impl CallStats {
    /// Runs `work` and counts it as a call.
    pub(crate) fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.calls += 1;
        self.time += begin.elapsed();
        result
    }
}

/// What the dirty log has cost so far; see
/// [`KvmVm::dirty_log_stats`](crate::KvmVm::dirty_log_stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyLogStats {
    /// Calls of KVM_GET_DIRTY_LOG.
    pub gets: CallStats,
    /// Calls of KVM_CLEAR_DIRTY_LOG.
    pub clears: CallStats,
    /// Calls of KVM_RESET_DIRTY_RINGS.
    pub resets: CallStats,
    /// Walks over the rings of all vCPUs, without the resets.
    pub reaps: CallStats,
    /// Merges of reported pages into the bitmaps.
    pub merges: CallStats,
    /// Pages that KVM reported, by slot or ring, however often.
    pub pages: u64,
    /// Pages that were write-protected by KVM_CLEAR_DIRTY_LOG.
    pub cleared_pages: u64,
    /// Signals that were sent to force a guest to exit from KVM_RUN: for a change of slots, a pause
    /// or a PML flush. Each costs the guest an exit. A vCPU outside of the guest gets none; kicks
    /// by [`VcpuKicker`](crate::VcpuKicker) do not count.
    pub kicks: u64,
    /// Exits because a dirty ring was full.
    pub ring_full: u64,
    /// Losses of ring entries that were detected; after each, all pages were marked dirty.
    pub ring_overruns: u64,
    /// Time that the dirty limit blocked vCPUs, summed over vCPUs. It is a part of `blocked`,
    /// except for the time that the signals take.
    pub throttled: Duration,
    /// Time that runnable vCPUs were blocked (slot change, pause, harvest of a full ring, dirty
    /// limit), summed over vCPUs, so that it may grow faster than the clock. A vCPU that is blocked
    /// now counts up to now. The time from a signal to the guest's exit is not included.
    pub blocked: Duration,
}
