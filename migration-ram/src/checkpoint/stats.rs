//! What checkpoints cost.

use std::fmt;
use std::time::Duration;

/// What going back to a checkpoint took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResetStats {
    /// Pages that were put back.
    pub pages: u64,
    /// The time to merge what accelerators have logged, and to take it.
    pub get: Duration,
    /// The time to re-arm the log of what was taken.
    pub clear: Duration,
    /// The time to put the pages back.
    pub copy: Duration,
    /// The time to put the states of devices back.
    pub state: Duration,
}

/// What a checkpoint of a running machine took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveStats {
    /// Pages that were copied while the machine ran, some of them more than once.
    pub pages_live: u64,
    /// Pages that were copied while it was paused.
    pub pages_paused: u64,
    /// How often what was dirty was copied, the last time included.
    pub rounds: u32,
    /// How long the machine was paused.
    pub paused: Duration,
}

impl fmt::Display for ResetStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, get, clear, copy, state } = self;
        write!(
            f,
            "{pages} pages; get {get:.1?}, clear {clear:.1?}, copy {copy:.1?}, state {state:.1?}"
        )
    }
}

impl fmt::Display for LiveStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages_live, pages_paused, rounds, paused } = self;
        write!(
            f,
            "{pages_live} pages live in {rounds} rounds, {pages_paused} in {paused:.1?} paused"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_for_people() {
        let reset =
            ResetStats { pages: 12, copy: Duration::from_micros(9), ..ResetStats::default() };
        let text = "12 pages; get 0.0ns, clear 0.0ns, copy 9.0µs, state 0.0ns";
        assert_eq!(reset.to_string(), text);
        let paused = Duration::from_millis(2);
        let live = LiveStats { pages_live: 90, pages_paused: 4, rounds: 3, paused };
        assert_eq!(live.to_string(), "90 pages live in 3 rounds, 4 in 2.0ms paused");
    }
}
