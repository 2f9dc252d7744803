//! The port by which a guest that draws and its machine keep step.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memory_region::MmioDevice;

/// How long a guest's read waits for the next frame: a pause has to wait as long.
const PATIENCE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    allowed: u64,
    done: Option<u64>,
}

/// A device of one 32-bit port. A guest writes the number of the frame that it has
/// drawn, and reads the number of the last one that it may draw; the read waits a
/// little if there is nothing to draw.
#[derive(Debug, Default)]
pub struct FramePort {
    state: Mutex<State>,
    changed: Condvar,
}

impl FramePort {
    /// The port.
    pub const PORT: u16 = 0x500;
    /// The size of its region.
    pub const SIZE: u128 = 4;

    /// Lets the guest draw up to frame `frame`.
    pub fn allow(&self, frame: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).allowed = frame;
        self.changed.notify_all();
    }

    /// Waits until the guest has drawn frame `frame`; says whether it did in time.
    pub fn wait_done(&self, frame: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.done < Some(frame) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The last frame that the guest may draw, after waiting a little for one that it
    /// has not drawn yet.
    pub fn next(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| state.done >= Some(state.allowed);
        let waited = self.changed.wait_timeout_while(state, PATIENCE, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.allowed
    }

    /// The last frame that may be drawn, and the last that was.
    pub fn state(&self) -> (u64, Option<u64>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.allowed, state.done)
    }

    /// Goes on where another port was.
    pub fn set_state(&self, allowed: u64, done: Option<u64>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { allowed, done };
        self.changed.notify_all();
    }

    /// The guest has drawn frame `frame`.
    pub fn finish(&self, frame: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done = Some(frame);
        self.changed.notify_all();
    }
}

impl MmioDevice for FramePort {
    fn read(&self, _: u64, _: usize) -> u64 {
        self.next()
    }

    fn write(&self, _: u64, _: usize, value: u64) {
        self.finish(value);
    }
}
