//! What a migration did, round by round.

use std::fmt;
use std::time::{Duration, Instant};

/// One pass over the pages that were pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// The round's number; 0 sends everything.
    pub round: u32,
    /// Pages of the stream that were sent.
    pub pages: u64,
    /// Those of them that were sent as zeros, without their bytes.
    pub zero_pages: u64,
    /// Bytes written to the stream.
    pub bytes: u64,
    /// From the first page to the last.
    pub time: Duration,
    /// Pages of the stream that were written meanwhile and are pending now; 0 after the last
    /// round.
    pub dirtied: u64,
    /// From the sync before the round to the one after it: the time in which they
    /// were written. Zero after the last round.
    pub dirty_period: Duration,
    /// Whether the machine stood still.
    pub paused: bool,
}

impl RoundStats {
    /// Pages written per second of the round.
    pub fn dirty_rate(&self) -> f64 {
        rate(self.dirtied, self.dirty_period)
    }

    /// Bytes sent per second of the round.
    pub fn bandwidth(&self) -> f64 {
        rate(self.bytes, self.time)
    }
}

#[allow(clippy::cast_precision_loss)] // a rate for people
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl fmt::Display for RoundStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round {}{}: {} pages ({} zero), {} bytes in {:.1?}, {:.0} MiB/s; {} dirtied, {:.0} \
                pages/s",
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

/// What a machine stood still for at the end of its migration; together about the downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DowntimeParts {
    /// Until the caller's `pause` had stopped everything.
    pub pause: Duration,
    /// The last synchronization of the log, and moving its bits.
    pub sync: Duration,
    /// The last round.
    pub pages: Duration,
    /// Saving the devices' states and sending them.
    pub devices: Duration,
    /// From the last byte to the receiver's answer; zero if there is no way for it.
    pub answer: Duration,
}

impl fmt::Display for DowntimeParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pause, sync, pages, devices, answer } = self;
        write!(
            f,
            "pause {pause:.1?}, sync {sync:.1?}, pages {pages:.1?}, devices {devices:.1?}, \
             answer {answer:.1?}"
        )
    }
}

/// Tells what each of several things took that are done one after the other.
pub(crate) struct Laps(Instant);

impl Laps {
    /// They begin at `begin`.
    pub(crate) fn since(begin: Instant) -> Self {
        Self(begin)
    }

    /// Since the lap before, or since the beginning.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// A whole migration, as its source saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// The rounds; the last one with the machine paused.
    pub rounds: Vec<RoundStats>,
    /// From the start to the last byte.
    pub total_time: Duration,
    /// From the call that pauses the machine to the receiver's answer, or to the last byte if
    /// there is no way for answers.
    pub downtime: Duration,
    /// What the machine stood still for in that time.
    pub downtime_parts: DowntimeParts,
    /// Bytes written to the stream, on all connections.
    pub bytes: u64,
    /// Percent of the time that the vCPUs were kept from running before the pause.
    pub throttle: u8,
    /// Bytes per second that the guest might dirty before the pause, if that was limited.
    pub dirty_limit: Option<u64>,
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
