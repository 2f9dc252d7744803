//! Dirty limit: how many bytes a second a guest may dirty, so that its migration converges.

use std::time::Duration;

use thiserror::Error;

use crate::converge::trend::Trend;

/// When to limit the bytes that a guest dirties per second, and to how many: as soon as it
/// dirties more than half of what is sent (see [`AutoConverge`](crate::AutoConverge)), to a
/// percentage of the bytes that are sent per second.
///
/// If the guest may dirty half of what can be sent, each round leaves half as much as the one
/// before. Unlike a throttle, the limit blocks only vCPUs that dirty new pages: a vCPU that
/// reads, or writes the same pages again and again, runs at full speed.
///
/// ```
/// use std::time::Duration;
/// use migration_ram::DirtyLimit;
///
/// let mut limit = DirtyLimit::default().begin()?;
/// let second = Duration::from_secs(1);
/// assert_eq!(limit.observe(second, 60 << 20, 100 << 20), None); // 60 % of what was sent
/// assert_eq!(limit.observe(second, 60 << 20, 100 << 20), Some(50 << 20)); // again
/// # Ok::<(), migration_ram::DirtyLimitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLimit {
    /// Bytes that may be dirtied, in percent of those that are sent in the same time: 1 to 99.
    pub percent: u8,
    /// Bytes per second that may always be dirtied, at least 1, so that a stalled connection
    /// does not stop the guest.
    pub floor: u64,
}

impl Default for DirtyLimit {
    /// Half of what is sent, and at least 1 MiB/s.
    fn default() -> Self {
        Self { percent: 50, floor: 1 << 20 }
    }
}

/// [`DirtyLimit`] settings that are out of range.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "A dirty limit is 1 to 99 % of what is sent and at least 1 byte a second, not {} % and {}",
    settings.percent, settings.floor
)]
pub struct DirtyLimitError {
    /// The settings given.
    pub settings: DirtyLimit,
}

impl DirtyLimit {
    /// The limiter of one migration, which begins without a limit.
    ///
    /// # Errors
    ///
    /// [`DirtyLimitError`] unless 1 ≤ `percent` ≤ 99 and 1 ≤ `floor`.
    pub fn begin(self) -> Result<DirtyLimiter, DirtyLimitError> {
        if !(1..=99).contains(&self.percent) || self.floor == 0 {
            return Err(DirtyLimitError { settings: self });
        }
        Ok(DirtyLimiter { settings: self, limit: None, trend: Trend::default() })
    }
}

/// The current limit of one migration by its [`DirtyLimit`]. It only decides: it has no clock,
/// and does not set the limit.
#[derive(Clone, Debug)]
pub struct DirtyLimiter {
    settings: DirtyLimit,
    limit: Option<u64>,
    trend: Trend,
}

impl DirtyLimiter {
    /// Records the bytes of RAM that were dirtied, and the bytes that were sent, in the `time`
    /// since the last call. Returns the limit in bytes per second, if it changed.
    ///
    /// Calls are added up to periods of at least a second. When more than half of what was
    /// sent was dirtied, in two periods in a row, the limit is set; each further period updates
    /// it.
    pub fn observe(&mut self, time: Duration, dirtied: u64, sent: u64) -> Option<u64> {
        let judged = self.trend.observe(time, dirtied, sent)?;
        if self.limit.is_none() && !judged.too_much {
            return None;
        }
        let part = u128::from(judged.bandwidth) * u128::from(self.settings.percent) / 100;
        let limit = u64::try_from(part).unwrap_or(u64::MAX).max(self.settings.floor);
        let before = self.limit.replace(limit);
        (before != Some(limit)).then_some(limit)
    }

    /// Bytes per second that may be dirtied, if that is limited.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::trend::PERIOD;

    #[test]
    fn limits_that_lead_nowhere_are_refused() {
        for (percent, floor) in [(0, 1), (100, 1), (50, 0)] {
            let settings = DirtyLimit { percent, floor };
            assert_eq!(settings.begin().unwrap_err(), DirtyLimitError { settings });
        }
        assert!(DirtyLimit { percent: 99, floor: 1 }.begin().is_ok());
    }

    #[test]
    fn a_limit_comes_late_and_follows_the_connection() {
        let mut limit = DirtyLimit { percent: 50, floor: 10 }.begin().unwrap();
        let mut observe = |dirtied, sent| limit.observe(PERIOD, dirtied, sent);
        // One good period breaks the row.
        assert_eq!([observe(51, 100), observe(50, 100), observe(51, 100)], [None; 3]);
        assert_eq!(observe(51, 100), Some(50));
        // In force it is what the connection allows, whatever was dirtied.
        assert_eq!(observe(0, 100), None);
        assert_eq!([observe(99, 60), observe(0, 300), observe(0, 0)], [30, 150, 10].map(Some));
        assert_eq!(limit.limit(), Some(10));
        // A period is as long as it is.
        assert_eq!(limit.observe(2 * PERIOD, 0, 400), Some(100));
    }
}
