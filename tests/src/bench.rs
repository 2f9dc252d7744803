//! How long a benchmark may take: its whole table in three minutes unless `--all` is given.
//!
//! The rows share the time by their weights, and what one leaves is the others'. A row has as
//! many rounds as fit its share, but at least as many as a median needs; when the time is over,
//! rows are left out and named.

use std::time::{Duration, Instant};

use clap::Args;

/// For all rows. What the last one begins with, and the building of machines, comes on top.
const TIME: Duration = Duration::from_secs(150);

/// The fewest rounds that a median is taken of.
pub const FEWEST: usize = 3;

/// The word that all benchmarks know.
#[derive(Args, Clone, Copy, Debug)]
pub struct Extent {
    /// All rows with all rounds, however long that takes; otherwise what three minutes allow
    #[arg(long)]
    pub all: bool,
}

/// The time of a table.
#[derive(Debug)]
pub struct Budget {
    /// None if it is not limited.
    end: Option<Instant>,
    /// Of the rows to come.
    weight: f64,
}

impl Budget {
    /// The time, from `now` on, for rows of `weight` in all.
    pub fn new(extent: Extent, weight: f64, now: Instant) -> Self {
        Self { end: (!extent.all).then(|| now + TIME), weight }
    }

    /// Whether no row can begin any more.
    pub fn is_over(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| end <= now)
    }

    /// The time of the next row, which begins `now`; none if there is none left.
    pub fn row(&mut self, weight: f64, now: Instant) -> Option<Share> {
        let Some(end) = self.end else { return Some(Share { end: None }) };
        let left = end.saturating_duration_since(now);
        let part = (weight / self.weight.max(weight)).clamp(0.0, 1.0);
        self.weight = (self.weight - weight).max(0.0);
        (!left.is_zero()).then(|| Share { end: Some(now + left.mul_f64(part)) })
    }
}

/// The time of a row.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    end: Option<Instant>,
}

impl Share {
    /// What is left of it; none if it is not limited.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(now))
    }

    /// Whether another round is to be made, after `done` of `wanted` ones.
    pub fn goes_on(&self, done: usize, wanted: usize, now: Instant) -> bool {
        let has_time = self.left(now).is_none_or(|left| !left.is_zero());
        done < wanted && (done < FEWEST || has_time)
    }

    /// How many of `wanted` rounds fit `part` of what is left, if each takes `cost`.
    pub fn rounds(&self, part: f64, cost: Duration, wanted: usize, now: Instant) -> usize {
        let Some(left) = self.left(now) else { return wanted };
        let fitting = left.mul_f64(part).as_nanos() / cost.as_nanos().max(1);
        usize::try_from(fitting).unwrap_or(usize::MAX).min(wanted)
    }
}

/// Says that a row is left out.
pub fn left_out(row: &str) {
    println!("{row}: left out, the three minutes are over (--all)");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITED: Extent = Extent { all: false };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rows_share_the_time_and_what_others_leave() {
        let now = Instant::now();
        let mut budget = Budget::new(LIMITED, 5.0, now);
        let first = budget.row(1.0, now).unwrap();
        assert_eq!(first.left(now), Some(30 * SECOND));
        // It took 10 seconds of its 30: 140 are left for rows of weight 4.
        let second = budget.row(2.0, now + 10 * SECOND).unwrap();
        assert_eq!(second.left(now + 10 * SECOND), Some(70 * SECOND));
        // The last one has all that is left, and none begins after the end.
        let third = budget.row(2.0, now + 120 * SECOND).unwrap();
        assert_eq!(third.left(now + 120 * SECOND), Some(30 * SECOND));
        assert!(!budget.is_over(now + 149 * SECOND) && budget.is_over(now + TIME));
        assert!(budget.row(1.0, now + TIME).is_none());
    }

    #[test]
    fn a_row_has_the_rounds_that_fit_and_enough_for_a_median() {
        let now = Instant::now();
        let share = Budget::new(LIMITED, 15.0, now).row(1.0, now).unwrap();
        assert_eq!(share.rounds(0.5, SECOND, 20, now), 5);
        assert_eq!(share.rounds(1.0, SECOND / 10, 20, now), 20);
        assert_eq!(share.rounds(1.0, 11 * SECOND, 20, now), 0);
        assert!(share.goes_on(19, 20, now) && !share.goes_on(20, 20, now));
        let late = now + 11 * SECOND;
        assert!(share.goes_on(FEWEST - 1, 20, late) && !share.goes_on(FEWEST, 20, late));
    }

    #[test]
    fn all_is_all() {
        let now = Instant::now();
        let mut budget = Budget::new(Extent { all: true }, 1.0, now);
        let late = now + 1000 * SECOND;
        let share = (0..9).map(|_| budget.row(1.0, late)).last().flatten().unwrap();
        assert!(share.goes_on(19, 20, late) && share.rounds(0.1, late - now, 20, late) == 20);
    }
}
