//! A bandwidth limit.

use std::time::Duration;

use crate::error::SendError;
use crate::host::Instant;
use crate::send::cancel::Cancel;

/// The longest sleep between two checks of the cancel.
const SLICE: Duration = Duration::from_millis(20);
/// After a stall, the bytes of this time may be sent at once.
const BURST: Duration = Duration::from_millis(100);

/// Limits the bytes sent per second.
#[derive(Debug)]
pub(crate) struct RateLimit {
    limit: Option<u64>,
    /// When the bytes sent so far should have been sent.
    due: Instant,
    sent: u64,
}

impl RateLimit {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, due: Instant::now(), sent: 0 }
    }

    /// Waits until the stream may be `sent` bytes long.
    pub(crate) fn wait(&mut self, sent: u64, cancel: &Cancel) -> Result<(), SendError> {
        cancel.check()?;
        let Some(limit) = self.limit else { return Ok(()) };
        let new = u128::from(sent - self.sent) * 1_000_000_000 / u128::from(limit.max(1));
        self.sent = sent;
        let earliest = Instant::now().checked_sub(BURST).unwrap_or(self.due);
        // Capped at about 290 years, so that the sum with `due` does not overflow.
        let new =
            Duration::from_nanos(u64::try_from(new).unwrap_or(u64::MAX / 2).min(u64::MAX / 2));
        self.due = self.due.max(earliest).checked_add(new).unwrap_or(self.due);
        loop {
            let left = self.due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
            cancel.check()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_and_a_cancel_ends_the_wait() {
        let cancel = Cancel::default();
        let begin = Instant::now();
        let mut pace = RateLimit::new(Some(1_000_000));
        for sent in 1..=10 {
            pace.wait(sent * 10_000, &cancel).unwrap();
        }
        assert!(begin.elapsed() >= Duration::from_millis(100), "{:?}", begin.elapsed());
        let mut slow = RateLimit::new(Some(1));
        let canceller = cancel.clone();
        let waiter = std::thread::spawn(move || slow.wait(u64::MAX, &canceller));
        cancel.cancel();
        assert!(matches!(waiter.join().unwrap(), Err(SendError::Cancelled)));
        assert!(cancel.end(Ok(())).is_ok());
        RateLimit::new(None).wait(u64::MAX, &cancel).unwrap();
    }
}
