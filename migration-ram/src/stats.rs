//! What a migration did, round by round.

use std::fmt;
use std::time::Duration;

/// One pass over the pages that were pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// The round's number; 0 sends everything.
    pub round: u32,
    /// Pages of the host that were sent.
    pub pages: u64,
    /// Those of them that were sent as zeros, without their bytes.
    pub zero_pages: u64,
    /// Bytes written to the stream.
    pub bytes: u64,
    /// From the first page to the last.
    pub time: Duration,
    /// Pages that were written meanwhile and are pending now; 0 after the last round.
    pub dirtied: u64,
    /// From the sync before the round to the one after it: the time in which they
    /// were written. Zero after the last round.
    pub dirtied_within: Duration,
    /// Whether the machine stood still.
    pub paused: bool,
}

impl RoundStats {
    /// Pages written per second of the round.
    pub fn dirty_rate(&self) -> f64 {
        rate(self.dirtied, self.dirtied_within)
    }

    /// Bytes sent per second of the round.
    pub fn bandwidth(&self) -> f64 {
        rate(self.bytes, self.time)
    }
}

#[allow(clippy::cast_precision_loss)] // a rate for people
fn rate(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl fmt::Display for RoundStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round {}{}: {} pages ({} zero), {} bytes in {:.1?}, {:.0} MiB/s; {} dirtied, {:.0} pages/s",
            self.round,
            if self.paused { " (paused)" } else { "" },
            self.pages,
            self.zero_pages,
            self.bytes,
            self.time,
            self.bandwidth() / f64::from(1 << 20),
            self.dirtied,
            self.dirty_rate(),
        )
    }
}

/// A whole migration, as its source saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// The rounds; the last one with the machine paused.
    pub rounds: Vec<RoundStats>,
    /// From the start to the last byte.
    pub total_time: Duration,
    /// From the call that pauses the machine to the last byte.
    pub downtime: Duration,
    /// Bytes written to the stream.
    pub bytes: u64,
    /// Whether the rest fitted the allowed downtime; if not, the limit of rounds was
    /// reached.
    pub converged: bool,
}

impl MigrationStats {
    /// Pages sent in all rounds; those sent again are counted again.
    pub fn pages(&self) -> u64 {
        self.rounds.iter().map(|round| round.pages).sum()
    }
}
