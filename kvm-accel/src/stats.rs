//! What tracking has cost.

use std::time::{Duration, Instant};

/// How often something was done, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallStats {
    /// Times.
    pub calls: u64,
    /// Time, in all.
    pub time: Duration,
}

impl CallStats {
    /// Does `work`, and counts it.
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
    /// Merges of what was found into the bitmaps.
    pub merges: CallStats,
    /// Pages that were reported, by slot or ring, however often.
    pub pages: u64,
    /// Pages that were write-protected by KVM_CLEAR_DIRTY_LOG.
    pub cleared_pages: u64,
    /// Signals that were sent to get a guest out of KVM_RUN: for slots to change, for a pause,
    /// or for what its processor holds back. Each costs the guest an exit. A vCPU that is out
    /// gets none; kicks by [`VcpuKicker`](crate::VcpuKicker) do not count.
    pub kicks: u64,
    /// Guests that stopped because a ring was full.
    pub ring_full: u64,
    /// Losses of ring entries that were noticed, and answered by taking all pages as
    /// written.
    pub ring_overruns: u64,
    /// For how long vCPUs were kept out because they had dirtied more than they may, that of
    /// all added up. It is a part of `blocked`, but for the way of the signal.
    pub throttled: Duration,
    /// For how long vCPUs stood still that would have run: while slots changed, while they
    /// were paused, while their full rings were emptied, while they waited for their limit. That of
    /// all vCPUs is added up, so it
    /// may grow faster than time does; who stands still at this moment counts up to now. The
    /// way of a signal to a guest, and the exit, are not in it.
    pub blocked: Duration,
}
