//! The time that vCPUs were blocked.

use std::time::{Duration, Instant};

/// Sums up the blocked time of all vCPUs, including those that are blocked now.
#[derive(Debug, Default)]
pub(crate) struct BlockedTime {
    /// How many are blocked now.
    blocked: u32,
    /// When that number last changed.
    since: Option<Instant>,
    /// The sum until then.
    before: Duration,
}

impl BlockedTime {
    /// A vCPU is blocked from now on.
    pub(crate) fn begin(&mut self) {
        self.change(self.blocked + 1, Instant::now());
    }

    /// A blocked vCPU goes on.
    pub(crate) fn end(&mut self) {
        self.change(self.blocked.saturating_sub(1), Instant::now());
    }

    /// The sum, up to now.
    pub(crate) fn total(&self) -> Duration {
        self.total_at(Instant::now())
    }

    fn change(&mut self, blocked: u32, now: Instant) {
        self.before = self.total_at(now);
        self.since = Some(now);
        self.blocked = blocked;
    }

    fn total_at(&self, now: Instant) -> Duration {
        let elapsed =
            self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.before + elapsed * self.blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_counts_while_it_stands() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut blocked_time = BlockedTime::default();
        assert_eq!(blocked_time.total_at(at(5)), Duration::ZERO);
        blocked_time.change(1, at(10));
        blocked_time.change(2, at(13));
        blocked_time.change(1, at(14));
        assert_eq!(blocked_time.total_at(at(20)), Duration::from_secs(3 + 2 + 6));
        blocked_time.change(0, at(20));
        assert_eq!(blocked_time.total_at(at(90)), Duration::from_secs(11));
    }
}
