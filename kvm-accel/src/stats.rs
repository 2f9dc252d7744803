//! What tracking has cost.

use std::fmt;
use std::time::{Duration, Instant};

/// How often something was done, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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

impl fmt::Display for CallStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:.1?}", self.calls, self.time)
    }
}

/// What was done, in one line; what was never done is left out.
impl fmt::Display for DirtyLogStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gets, clears, resets, reaps, merges, .. } = self;
        write!(f, "{} pages", self.pages)?;
        for (name, calls) in [
            ("gets", gets),
            ("clears", clears),
            ("resets", resets),
            ("reaps", reaps),
            ("merges", merges),
        ] {
            if calls.calls > 0 {
                write!(f, ", {name} {calls}")?;
            }
        }
        let counts = [
            (self.cleared_pages, "pages cleared"),
            (self.kicks, "kicks"),
            (self.ring_full, "full rings"),
            (self.ring_overruns, "overruns"),
        ];
        for (count, name) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {name}")?;
        }
        write!(f, ", vCPUs blocked {:.1?}", self.blocked)?;
        if !self.throttled.is_zero() {
            write!(f, ", {:.1?} of it by the limit", self.throttled)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_for_people() {
        let none = DirtyLogStats::default().to_string();
        assert_eq!(none, "0 pages, vCPUs blocked 0.0ns");
        let stats = DirtyLogStats {
            pages: 7,
            resets: CallStats { calls: 2, time: Duration::from_micros(30) },
            ring_full: 1,
            blocked: Duration::from_millis(4),
            throttled: Duration::from_millis(1),
            ..DirtyLogStats::default()
        };
        let text = "7 pages, resets 2 in 30.0µs, 1 full rings, vCPUs blocked 4.0ms, 1.0ms of \
            it by the limit";
        assert_eq!(stats.to_string(), text);
    }
}
