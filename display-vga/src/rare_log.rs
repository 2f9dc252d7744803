//! Rate-limits log records that a guest or a viewer can cause without end.

use std::time::Duration;

use crate::clock::Instant;

/// The least time between two records of one kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// Keeps a guest or viewer from filling the log: passes one record of a kind per minute, and
/// counts the others.
#[derive(Debug, Default)]
pub(crate) struct RareLog {
    /// When a record was last passed.
    last: Option<Instant>,
    suppressed: u64,
}

impl RareLog {
    /// `None` if a record at `now` is to be suppressed. Otherwise returns the end of its message:
    /// how many records were suppressed since the last one.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<String> {
        let waits = |last| now.saturating_duration_since(last) < INTERVAL;
        if self.last.is_some_and(waits) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(match std::mem::take(&mut self.suppressed) {
            0 => String::new(),
            count => format!(" ({count} more since the last such record)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_passes_a_minute() {
        let (mut rare, start) = (RareLog::default(), Instant::now());
        let mut at = |seconds: u64| rare.pass(start + Duration::from_secs(seconds));
        assert_eq!(at(0).as_deref(), Some(""));
        assert!((0..60).all(|second| at(second).is_none()));
        assert_eq!(at(60).as_deref(), Some(" (60 more since the last such record)"));
        assert_eq!(at(119), None);
        assert_eq!(at(1000).as_deref(), Some(" (1 more since the last such record)"));
        assert_eq!(at(2000).as_deref(), Some(""));
    }
}
