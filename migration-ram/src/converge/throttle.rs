//! Slowing a guest down, so that it writes less than can be sent.
//!
//! It knows nothing of a migration: [`AutoConverge`](crate::AutoConverge) is one who may say
//! how much.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long the vCPUs run before they stand still again: QEMU's time slice.
const SLICE: Duration = Duration::from_millis(10);

/// More than this makes a guest not slow but dead.
pub(crate) const MOST: u8 = 99;

/// Lets the vCPUs of a machine run for a part of the time only.
///
/// At `p` percent they run for 10 ms, then stand still for 10 ms × p / (100 - p), and so
/// on: at 50 % half of the time, at 99 % for 990 ms in each second. What a slice was too
/// long, because the host was busy, is made up for in the next pause, and the other way
/// round, so that the part holds on a loaded host too.
///
/// Dropped, it lets the vCPUs run; it waits for a call of `pause` that is under way.
///
/// ```
/// use std::time::Duration;
/// use migration_ram::Throttle;
///
/// // Stops the vCPUs, and returns a guard that holds them: with kvm-accel,
/// // `move || vm.pause(Duration::from_secs(1))`.
/// let throttle = Throttle::new(|| Ok::<(), std::io::Error>(()))?;
/// throttle.set(20);
/// assert_eq!(throttle.percent(), 20);
/// while throttle.stopped_time() < Duration::from_millis(5) {
///     std::thread::yield_now();
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Throttle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The percentage is another, or the thread is to end.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    percent: u8,
    ending: bool,
    /// In pauses that are over.
    stood_still: Duration,
    still_since: Option<Instant>,
    failures: u64,
}

impl Throttle {
    /// A throttle that is off. `pause` is called on a thread of its own; it stops all
    /// vCPUs and returns a guard that holds them, and lets them go on when dropped.
    ///
    /// A pause that fails is counted ([`failures`](Self::failures)) and the first is
    /// logged; the vCPUs then run for another 10 ms. Let it give up after a second or so:
    /// nothing else is done meanwhile.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn new<G, E>(pause: impl FnMut() -> Result<G, E> + Send + 'static) -> io::Result<Self>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let shared = Arc::<Shared>::default();
        let thread = Builder::new().name("throttle".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.run(pause)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the vCPUs stand still for `percent` of the time from now on: 0 is off, more
    /// than 99 are 99. A pause that is under way is made longer or shorter.
    pub fn set(&self, percent: u8) {
        let percent = percent.min(MOST);
        let before = std::mem::replace(&mut self.shared.lock().percent, percent);
        if before != percent {
            log::debug!("vCPUs stand still for {percent} % of the time, {before} % before");
            self.shared.changed.notify_all();
        }
    }

    /// The percentage that was last set.
    pub fn percent(&self) -> u8 {
        self.shared.lock().percent
    }

    /// For how long the vCPUs stood still so far, in all.
    pub fn stopped_time(&self) -> Duration {
        let state = self.shared.lock();
        state.stood_still + state.still_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How many pauses failed.
    pub fn failures(&self) -> u64 {
        self.shared.lock().failures
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::warn!("The throttle's thread panicked: a pause did");
        }
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("percent", &self.percent()).finish_non_exhaustive()
    }
}

impl State {
    /// Who ran for `time` is then to stand still for this long.
    fn due(&self, time: Duration) -> Duration {
        time * u32::from(self.percent) / u32::from(100 - self.percent)
    }

    fn is_off(&self) -> bool {
        self.ending || self.percent == 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs between two writes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<G, E>(&self, mut pause: impl FnMut() -> Result<G, E>)
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        // What they stood still too long.
        let mut credit = Duration::ZERO;
        loop {
            let mut state = self.lock();
            while state.is_off() {
                if state.ending {
                    return;
                }
                credit = Duration::ZERO;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let running = Instant::now();
            state = self.wait(state, running, |state| (!state.is_off()).then_some(SLICE));
            if state.is_off() {
                continue;
            }
            drop(state);
            match pause() {
                Ok(guard) => {
                    // What the host made longer than ten slices is no debt of the guest's.
                    let ran = running.elapsed().min(SLICE * 10);
                    credit = self.stand_still(guard, ran, credit);
                }
                Err(error) => self.note(error.into()),
            }
        }
    }

    /// Keeps the guard for as long as those who ran for a time are to stand still, less the
    /// credit that they have. Returns the credit that they have then.
    fn stand_still<G>(&self, guard: G, ran: Duration, credit: Duration) -> Duration {
        let begin = Instant::now();
        let mut state = self.lock();
        state.still_since = Some(begin);
        let due = |state: &State| state.due(ran).saturating_sub(credit);
        state = self.wait(state, begin, |state| (!state.is_off()).then(|| due(state)));
        let due = state.due(ran);
        drop(state);
        drop(guard);
        let stood = begin.elapsed();
        let mut state = self.lock();
        state.still_since = None;
        state.stood_still += stood;
        (credit + stood).saturating_sub(due).min(SLICE)
    }

    /// Waits until as much time has gone by since `start` as `until` says, or it says none.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        start: Instant,
        until: impl Fn(&State) -> Option<Duration>,
    ) -> MutexGuard<'a, State> {
        while let Some(time) = until(&state) {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn note(&self, error: Box<dyn Error + Send + Sync>) {
        let mut state = self.lock();
        state.failures += 1;
        let first = state.failures == 1;
        drop(state);
        if first {
            log::warn!("vCPUs cannot be paused, they are not slowed down: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
