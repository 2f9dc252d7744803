//! Whether a guest writes too much for its migration to end.

use std::time::Duration;

/// The shortest time that is judged.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// Whether so many bytes that were dirtied are too many, while so many were sent.
pub(crate) fn is_too_much(dirtied: u64, sent: u64) -> bool {
    dirtied > sent / 2
}

/// What happened in a time.
#[derive(Clone, Copy, Debug, Default)]
struct Period {
    time: Duration,
    dirtied: u64,
    sent: u64,
}

/// The periods of one migration, as QEMU's auto-converge judges them. It has no clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trend {
    period: Period,
    /// Whether the last period dirtied too much.
    high: bool,
}

/// What is thought of a period that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Bytes per second that were sent in it.
    pub(crate) bandwidth: u64,
    /// More was dirtied than half of what was sent, in two periods in a row; the count begins
    /// anew.
    pub(crate) too_much: bool,
}

impl Trend {
    /// Takes in the `time` since the last call, bytes of RAM that were dirtied, and bytes that
    /// were sent. Calls are gathered to periods of at least a second: most end none.
    pub(crate) fn observe(&mut self, time: Duration, dirtied: u64, sent: u64) -> Option<Judged> {
        let Period { time: t, dirtied: d, sent: s } = self.period;
        self.period = Period {
            time: t.saturating_add(time),
            dirtied: d.saturating_add(dirtied),
            sent: s.saturating_add(sent),
        };
        if self.period.time < PERIOD {
            return None;
        }
        let Period { time, dirtied, sent } = std::mem::take(&mut self.period);
        let high = is_too_much(dirtied, sent);
        let too_much = high && self.high;
        self.high = high && !too_much;
        let bandwidth = u128::from(sent) * 1_000_000_000 / time.as_nanos();
        Some(Judged { bandwidth: u64::try_from(bandwidth).unwrap_or(u64::MAX), too_much })
    }
}
