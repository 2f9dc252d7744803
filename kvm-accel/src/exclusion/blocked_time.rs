//! How long vCPUs stood still.

use std::time::{Duration, Instant};

/// Adds up the time of all vCPUs that stand still, those that still do included.
#[derive(Debug, Default)]
pub(crate) struct BlockedTime {
    /// How many stand still now.
    standing: u32,
    /// When that number last changed.
    since: Option<Instant>,
    /// What was added up until then.
    before: Duration,
}

impl BlockedTime {
    /// A vCPU stands still from now on.
    pub(crate) fn begin(&mut self) {
        self.change(self.standing + 1, Instant::now());
    }

    /// A vCPU that stood still goes on.
    pub(crate) fn end(&mut self) {
        self.change(self.standing.saturating_sub(1), Instant::now());
    }

    /// The time of all of them, up to now.
    pub(crate) fn total(&self) -> Duration {
        self.total_at(Instant::now())
    }

    fn change(&mut self, standing: u32, now: Instant) {
        self.before = self.total_at(now);
        self.since = Some(now);
        self.standing = standing;
    }

    fn total_at(&self, now: Instant) -> Duration {
        let elapsed =
            self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.before + elapsed * self.standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_counts_while_it_stands() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut standstill = BlockedTime::default();
        assert_eq!(standstill.total_at(at(5)), Duration::ZERO);
        standstill.change(1, at(10));
        standstill.change(2, at(13));
        standstill.change(1, at(14));
        assert_eq!(standstill.total_at(at(20)), Duration::from_secs(3 + 2 + 6));
        standstill.change(0, at(20));
        assert_eq!(standstill.total_at(at(90)), Duration::from_secs(11));
    }
}
