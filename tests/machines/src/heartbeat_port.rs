//! The port at which a guest shows that it is alive.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memory_region::MmioDevice;

/// The last beat.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    count: u32,
    at: Option<Instant>,
    /// The first that came.
    first: Option<u32>,
}

/// A device of one 32-bit port, to which a guest writes a number that grows. Each write takes
/// a given time, so that a guest that works between them does so much work in a second.
#[derive(Debug)]
pub struct HeartbeatPort {
    state: Mutex<State>,
    beaten: Condvar,
    period: Duration,
}

impl HeartbeatPort {
    /// The port.
    pub const PORT: u16 = 0x504;
    /// The size of its region.
    pub const SIZE: u128 = 4;

    /// A port that takes a write in each `period`.
    pub fn new(period: Duration) -> Self {
        Self { state: Mutex::default(), beaten: Condvar::new(), period }
    }

    /// The last number, and when it came; none has come since the start or since `set`.
    pub fn last(&self) -> (u32, Option<Instant>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.count, state.at)
    }

    /// The number that another machine's port had last.
    pub fn set(&self, count: u32) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { count, at: None, first: None };
    }

    /// Waits for a number to come; returns the first, or `None` if none comes in time.
    pub fn wait(&self, timeout: Duration) -> Option<u32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.beaten.wait_timeout_while(state, timeout, |state| state.at.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.first
    }
}

impl MmioDevice for HeartbeatPort {
    fn read(&self, _: u64, _: usize) -> u64 {
        u64::from(self.last().0)
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.at;
        state.count = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        state.at = Some(Instant::now());
        let count = state.count;
        state.first.get_or_insert(count);
        drop(state);
        self.beaten.notify_all();
        if let Some(before) = before {
            std::thread::sleep(self.period.saturating_sub(before.elapsed()));
        }
    }
}
