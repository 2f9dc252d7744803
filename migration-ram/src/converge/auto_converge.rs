//! Auto-converge: by what percentage to throttle a guest so that its migration converges.

use std::time::Duration;

use thiserror::Error;

use crate::converge::throttle::MAX_PERCENT;
use crate::converge::trend::Trend;

/// When to throttle a guest, and by how much: the steps of QEMU's auto-converge, with its
/// defaults.
///
/// ```
/// use std::time::Duration;
/// use migration_ram::AutoConverge;
///
/// let mut steps = AutoConverge::default().steps()?;
/// let second = Duration::from_secs(1);
/// assert_eq!(steps.observe(second, 60 << 20, 100 << 20), None); // 60 % of what was sent
/// assert_eq!(steps.observe(second, 60 << 20, 100 << 20), Some(20)); // again: 20 % from now on
/// # Ok::<(), migration_ram::AutoConvergeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoConverge {
    /// The first percentage, from 1 to `max`.
    pub initial: u8,
    /// What each further step adds, from 1 on.
    pub increment: u8,
    /// The largest percentage, up to 99.
    pub max: u8,
}

impl Default for AutoConverge {
    /// 20 %, then 10 % more with each step, up to 99 %.
    fn default() -> Self {
        Self { initial: 20, increment: 10, max: MAX_PERCENT }
    }
}

/// [`AutoConverge`] settings that are out of range.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "A throttle goes in steps from 1 to at most 99 %, not from {} by {} up to {} %",
    settings.initial, settings.increment, settings.max
)]
pub struct AutoConvergeError {
    /// The settings given.
    pub settings: AutoConverge,
}

impl AutoConverge {
    /// The steps of one migration, which begins without a throttle.
    ///
    /// # Errors
    ///
    /// [`AutoConvergeError`] unless 1 ≤ `initial` ≤ `max` ≤ 99 and 1 ≤ `increment`.
    pub fn steps(self) -> Result<ThrottleSteps, AutoConvergeError> {
        let Self { initial, increment, max } = self;
        if initial == 0 || increment == 0 || initial > max || max > MAX_PERCENT {
            return Err(AutoConvergeError { settings: self });
        }
        Ok(ThrottleSteps { settings: self, percent: 0, trend: Trend::default() })
    }

    /// The percentage of the step after `percent`, which is 0 before the first.
    fn after(&self, percent: u8) -> u8 {
        match percent {
            0 => self.initial,
            _ => percent.saturating_add(self.increment).min(self.max),
        }
    }
}

/// The current step of one migration by its [`AutoConverge`]. It only decides: it has no clock,
/// and pauses no vCPU.
#[derive(Clone, Debug)]
pub struct ThrottleSteps {
    settings: AutoConverge,
    percent: u8,
    trend: Trend,
}

impl ThrottleSteps {
    /// Records the bytes of RAM that were dirtied, and the bytes that were sent, in the `time`
    /// since the last call. Returns the percentage to set, if it changed.
    ///
    /// Calls are added up to periods of at least a second. When more than half of what was
    /// sent was dirtied, in two periods in a row, the next step is taken, and the count starts
    /// again. The percentage never decreases.
    pub fn observe(&mut self, time: Duration, dirtied: u64, sent: u64) -> Option<u8> {
        let judged = self.trend.observe(time, dirtied, sent)?;
        let before = self.percent;
        if judged.too_much {
            self.percent = self.settings.after(before);
        }
        (self.percent != before).then_some(self.percent)
    }

    /// The percentage of the last step; 0 before the first.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Whether the percentage is the largest one.
    pub fn is_at_most(&self) -> bool {
        self.percent == self.settings.max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::converge::trend::PERIOD;

    #[test]
    fn steps_that_lead_nowhere_are_refused() {
        for (initial, increment, max) in [(0, 10, 99), (20, 0, 99), (20, 10, 100), (30, 10, 29)] {
            let settings = AutoConverge { initial, increment, max };
            assert_eq!(settings.steps().unwrap_err(), AutoConvergeError { settings });
        }
        assert!(AutoConverge { initial: 99, increment: 255, max: 99 }.steps().is_ok());
    }

    #[test]
    fn the_default_steps_are_qemus() {
        let mut steps = AutoConverge::default().steps().unwrap();
        let mut set = Vec::new();
        for _ in 0..40 {
            set.extend(steps.observe(PERIOD, 51, 100));
        }
        assert_eq!(set, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
        assert!(steps.is_at_most());
        let mut steps = AutoConverge::default().steps().unwrap();
        // Half is not too much, and one good period breaks the row.
        for (dirtied, set) in [(51, None), (50, None), (51, None), (51, Some(20)), (51, None)] {
            assert_eq!(steps.observe(PERIOD, dirtied, 100), set);
        }
    }

    proptest! {
        /// Calls are added up to periods of a second, however they divide it.
        #[test]
        fn short_times_are_gathered(
            parts in prop::collection::vec((1u32..400, 0u64..100, 0u64..100), 1..200),
        ) {
            let mut steps = AutoConverge::default().steps().unwrap();
            let (mut ms, mut dirtied, mut sent, mut row, mut percent) = (0, 0, 0, 0, 0u8);
            for (time, d, s) in parts {
                (ms, dirtied, sent) = (ms + time, dirtied + d, sent + s);
                if ms >= 1000 {
                    row = if 2 * dirtied > sent { row + 1 } else { 0 };
                    (ms, dirtied, sent) = (0, 0, 0);
                }
                if row == 2 {
                    row = 0;
                    percent = if percent == 0 { 20 } else { (percent + 10).min(99) };
                }
                steps.observe(Duration::from_millis(time.into()), d, s);
                prop_assert_eq!(steps.percent(), percent);
            }
        }
    }
}
