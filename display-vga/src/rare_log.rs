//! Records of what guests and viewers can bring about without end.

use std::time::{Duration, Instant};

/// The least time between two records of one kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// Keeps a log from being filled by somebody who does the same thing over and over: lets one
/// record of a kind pass a minute, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct RareLog {
    /// When a record passed last.
    last: Option<Instant>,
    left_out: u64,
}

impl RareLog {
    /// Whether something that happens at `now` is to be logged; if so, how many records were
    /// left out since the last one, as the end of a sentence.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<String> {
        let waits = |last| now.saturating_duration_since(last) < INTERVAL;
        if self.last.is_some_and(waits) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(match std::mem::take(&mut self.left_out) {
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
