//! Computes when to refresh next.

use std::time::Duration;

use crate::refresh::screen::Refresh;

/// Whether the machine runs, and whether anybody views its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewerState {
    /// The machine runs, and there is a viewer.
    Running,
    /// The machine is paused, or has migrated away: one more refresh shows its last picture, then
    /// no refresh is needed until it runs.
    Stopped,
    /// There are no viewers.
    NoViewers,
}

/// Computes the time from one refresh to the next; it has no clock.
///
/// While the guest draws, the interval is the quickest one; each refresh without changes doubles
/// it, up to the slowest. A blinking cursor is drawn in time, and does not count as a change.
///
/// ```
/// use std::time::Duration;
/// use display_vga::{RefreshTimer, Refresh, ViewerState};
///
/// let mut pace = RefreshTimer::default();
/// let idle = Refresh::default();
/// let waits = [(); 6].map(|()| pace.next(ViewerState::Running, &idle).unwrap().as_millis());
/// assert_eq!(waits, [60, 120, 240, 480, 500, 500]);
/// pace.wake(); // a key was pressed: something will change
/// assert_eq!(pace.next(ViewerState::Running, &idle), Some(Duration::from_millis(60)));
/// assert_eq!(pace.next(ViewerState::NoViewers, &idle), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshTimer {
    quickest: Duration,
    slowest: Duration,
    interval: Duration,
    /// Whether the last picture of a paused machine was drawn.
    settled: bool,
}

impl Default for RefreshTimer {
    /// From 30 ms to half a second.
    fn default() -> Self {
        Self::new(Duration::from_millis(30), Duration::from_millis(500))
    }
}

impl RefreshTimer {
    /// Intervals from `quickest`, while the picture changes, to `slowest`, when it has not changed
    /// for a while.
    pub fn new(quickest: Duration, slowest: Duration) -> Self {
        Self { quickest, slowest: slowest.max(quickest), interval: quickest, settled: false }
    }

    /// Resets to the quickest interval: the picture will change soon (input), or there is a new
    /// viewer.
    pub fn wake(&mut self) {
        self.interval = self.quickest;
        self.settled = false;
    }

    /// How long to wait after the refresh with result `last`; `None` if no other refresh is needed
    /// until `watch` changes or, for a stopped machine, [`wake`](Self::wake) is called.
    pub fn next(&mut self, watch: ViewerState, last: &Refresh) -> Option<Duration> {
        match watch {
            ViewerState::NoViewers => None,
            ViewerState::Stopped if self.settled => None,
            ViewerState::Stopped => {
                self.settled = true;
                Some(Duration::ZERO)
            }
            ViewerState::Running => {
                self.settled = false;
                let slower = (self.interval * 2).min(self.slowest);
                self.interval = if last.active { self.quickest } else { slower };
                let blink = last.next_blink.unwrap_or(Duration::MAX).max(Duration::from_millis(1));
                Some(self.interval.min(blink))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_machine_is_shown_once_more() {
        let mut pace = RefreshTimer::default();
        let changed = Refresh { active: true, ..Refresh::default() };
        assert_eq!(pace.next(ViewerState::Running, &changed), Some(Duration::from_millis(30)));
        assert_eq!(pace.next(ViewerState::Stopped, &changed), Some(Duration::ZERO));
        assert_eq!(pace.next(ViewerState::Stopped, &changed), None);
        pace.wake();
        assert_eq!(pace.next(ViewerState::Stopped, &changed), Some(Duration::ZERO));
        assert_eq!(pace.next(ViewerState::Running, &changed), Some(Duration::from_millis(30)));
    }

    #[test]
    fn a_cursor_blinks_in_time() {
        let mut pace = RefreshTimer::default();
        let blinking =
            Refresh { next_blink: Some(Duration::from_millis(100)), ..Refresh::default() };
        let waits =
            [(); 4].map(|()| pace.next(ViewerState::Running, &blinking).unwrap().as_millis());
        assert_eq!(waits, [60, 100, 100, 100]);
    }
}
