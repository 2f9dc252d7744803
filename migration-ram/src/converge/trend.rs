//! Whether a guest dirties too much for its migration to converge.

use std::time::Duration;

/// The shortest time over which bytes are compared.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// Whether more than half of the bytes that were `sent` were dirtied in the same time.
pub(crate) fn is_too_much(dirtied: u64, sent: u64) -> bool {
    dirtied > sent / 2
}

/// Bytes dirtied and sent in a time.
#[derive(Clone, Copy, Debug, Default)]
struct Period {
    time: Duration,
    dirtied: u64,
    sent: u64,
}

/// The periods of one migration, compared as by QEMU's auto-converge. It has no clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trend {
    period: Period,
    /// Whether too much was dirtied in the last period.
    high: bool,
}

/// The result of a period that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Bytes per second that were sent in it.
    pub(crate) bandwidth: u64,
    /// More than half of what was sent was dirtied, in two periods in a row; the count starts
    /// again.
    pub(crate) too_much: bool,
}

impl Trend {
    /// Records the `time` since the last call, and the bytes of RAM that were dirtied and sent in
    /// it. Returns `None` until the calls add up to a period of at least a second.
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
