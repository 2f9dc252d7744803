//! Statistics of a migration, round by round.

use std::fmt;
use std::time::Duration;

use crate::host::Instant;

/// One pass over the pages that were pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoundStats {
    /// The round's number; 0 sends everything.
    pub round: u32,
    /// Pages of the stream that were sent.
    pub pages: u64,
    /// The part of them that was sent as zero pages, without contents.
    pub zero_pages: u64,
    /// Bytes written to the stream.
    pub bytes: u64,
    /// From the first page to the last.
    pub time: Duration,
    /// Pages of the stream that became pending meanwhile, as they were dirtied; 0 after the last
    /// round.
    pub dirtied: u64,
    /// The time in which they were dirtied: about that from the sync before the round to the one
    /// after it. Zero after the last round.
    pub dirty_period: Duration,
    /// Whether the machine was paused.
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

/// The steps of the downtime; they add up to about the downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DowntimeParts {
    /// Until the caller's `pause` had stopped everything.
    pub pause: Duration,
    /// The last sync of the log, and the harvest.
    pub sync: Duration,
    /// The last round.
    pub pages: Duration,
    /// Saving the devices' states and sending them.
    pub devices: Duration,
    /// From the last byte to the receiver's acknowledgement; zero without a return path.
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

/// Measures the times of steps that follow each other.
pub(crate) struct Laps(Instant);

impl Laps {
    /// The first step begins at `begin`.
    pub(crate) fn since(begin: Instant) -> Self {
        Self(begin)
    }

    /// The time since the last call, or since the beginning.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// The statistics of a completed migration, from its source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationStats {
    /// The rounds; the last one with the machine paused.
    pub rounds: Vec<RoundStats>,
    /// From the start to the last byte.
    pub total_time: Duration,
    /// From the call that pauses the machine to the receiver's acknowledgement, or, without a
    /// return path, to the last byte.
    pub downtime: Duration,
    /// The steps of the downtime.
    pub downtime_parts: DowntimeParts,
    /// Bytes written to the stream, on all connections.
    pub bytes: u64,
    /// Percent of the time for which the vCPUs were throttled before the pause.
    pub throttle: u8,
    /// The guest's dirty limit in bytes per second before the pause, if one was set.
    pub dirty_limit: Option<u64>,
    /// Whether the rest was expected to fit the allowed downtime; if not, the limit of rounds was
    /// reached.
    pub converged: bool,
}

impl MigrationStats {
    /// Pages sent in all rounds; those sent again are counted again.
    pub fn pages(&self) -> u64 {
        self.rounds.iter().map(|round| round.pages).sum()
    }
}

/// A line for all of it, one for the downtime, and one for each round.
impl fmt::Display for MigrationStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.converged { "converged" } else { "did not converge" };
        write!(
            f,
            "{} pages, {} bytes in {:.1?}, {how}",
            self.pages(),
            self.bytes,
            self.total_time
        )?;
        if self.throttle > 0 {
            write!(f, ", throttled {} %", self.throttle)?;
        }
        if let Some(limit) = self.dirty_limit {
            write!(f, ", limited to {limit} dirty bytes/s")?;
        }
        write!(f, "\ndowntime {:.1?}: {}", self.downtime, self.downtime_parts)?;
        self.rounds.iter().try_for_each(|round| write!(f, "\n{round}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_for_people() {
        let round = RoundStats {
            round: 1,
            pages: 300,
            zero_pages: 7,
            paused: true,
            ..RoundStats::default()
        };
        let stats = MigrationStats {
            rounds: vec![RoundStats { pages: 4000, ..RoundStats::default() }, round],
            total_time: Duration::from_millis(1500),
            downtime: Duration::from_micros(2500),
            bytes: 17_000_000,
            throttle: 40,
            dirty_limit: Some(1 << 20),
            converged: true,
            ..MigrationStats::default()
        };
        let text = stats.to_string();
        let lines: Vec<&str> = text.lines().collect();
        let first = "4300 pages, 17000000 bytes in 1.5s, converged, throttled 40 %, limited to \
            1048576 dirty bytes/s";
        assert_eq!(lines[0], first);
        assert!(lines[1].starts_with("downtime 2.5ms: pause 0.0ns, sync"), "{text}");
        assert!(lines[3].starts_with("round 1 (paused): 300 pages (7 zero)"), "{text}");
        assert_eq!(lines.len(), 4);
    }
}
