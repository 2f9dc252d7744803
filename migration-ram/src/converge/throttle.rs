//! The throttle: pauses the vCPUs for a percentage of the time.
//!
//! The caller sets the percentage, for example by [`AutoConverge`](crate::AutoConverge).

use std::error::Error;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::host::Instant;
use crate::locks::{lock, unpoisoned};

/// How long the vCPUs run between two pauses: QEMU's time slice.
const SLICE: Duration = Duration::from_millis(10);

/// The largest percentage, as QEMU's: at 100 the guest would not run at all.
pub(crate) const MAX_PERCENT: u8 = 99;

/// Pauses the vCPUs of a machine for a percentage of the time.
///
/// At `p` percent they run for 10 ms, then are paused for 10 ms × p / (100 - p), and so
/// on: at 50 % half of the time, at 99 % for 990 ms in each second. If a busy host makes a
/// slice too long, the next pause is longer, and if it makes a pause too long, the next one is
/// shorter, so that the percentage holds on a loaded host too.
///
/// Dropping it resumes the vCPUs, after a call of `pause` that is under way.
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
#[derive(Debug)]
pub struct Throttle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<ThrottleState>,
    /// Signalled when the percentage changes, or the thread is to end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ThrottleState {
    percent: u8,
    ending: bool,
    /// The sum of the pauses that have ended.
    stopped_time: Duration,
    stopped_since: Option<Instant>,
    failures: u64,
}

impl Throttle {
    /// A throttle that is off. The throttle's thread calls `pause`, which pauses all vCPUs and
    /// returns a guard; dropping the guard resumes them.
    ///
    /// A pause that fails is counted ([`failures`](Self::failures)) and the first is
    /// logged; the vCPUs then run for another 10 ms. `pause` should time out after a second or
    /// so: the throttle does nothing else meanwhile.
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

    /// Pauses the vCPUs for `percent` of the time from now on: 0 is off, more than 99 are 99.
    /// A pause that is under way is made longer or shorter.
    pub fn set(&self, percent: u8) {
        let percent = percent.min(MAX_PERCENT);
        let before = std::mem::replace(&mut lock(&self.shared.state).percent, percent);
        if before != percent {
            log::debug!("vCPUs are paused for {percent} % of the time, {before} % before");
            self.shared.changed.notify_all();
        }
    }

    /// The percentage that was last set.
    pub fn percent(&self) -> u8 {
        lock(&self.shared.state).percent
    }

    /// For how long the vCPUs were paused so far, in all.
    pub fn stopped_time(&self) -> Duration {
        let state = lock(&self.shared.state);
        state.stopped_time + state.stopped_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How many pauses failed.
    pub fn failures(&self) -> u64 {
        lock(&self.shared.state).failures
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        lock(&self.shared.state).ending = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::warn!("The throttle's thread panicked in a call of `pause`");
        }
    }
}

impl ThrottleState {
    /// How long the vCPUs are to be paused after they ran for `time`.
    fn due(&self, time: Duration) -> Duration {
        time * u32::from(self.percent) / u32::from(100 - self.percent)
    }

    fn is_off(&self) -> bool {
        self.ending || self.percent == 0
    }
}

impl Shared {
    fn run<G, E>(&self, mut pause: impl FnMut() -> Result<G, E>)
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        // By how much the last pauses were too long.
        let mut credit = Duration::ZERO;
        loop {
            let mut state = lock(&self.state);
            while state.is_off() {
                if state.ending {
                    return;
                }
                credit = Duration::ZERO;
                state = unpoisoned(self.changed.wait(state));
            }
            let running = Instant::now();
            state = self.wait(state, running, |state| (!state.is_off()).then_some(SLICE));
            if state.is_off() {
                continue;
            }
            drop(state);
            match pause() {
                Ok(guard) => {
                    // A busy host may let a slice last for seconds: charge ten slices at most.
                    let ran = running.elapsed().min(SLICE * 10);
                    credit = self.hold(guard, ran, credit);
                }
                Err(error) => self.count_failure(error.into()),
            }
        }
    }

    /// Holds the guard for as long as vCPUs that `ran` so long are to be paused, less the
    /// `credit` of earlier pauses that were too long. Returns the credit after this one.
    fn hold<G>(&self, guard: G, ran: Duration, credit: Duration) -> Duration {
        let begin = Instant::now();
        let mut state = lock(&self.state);
        state.stopped_since = Some(begin);
        let due = |state: &ThrottleState| state.due(ran).saturating_sub(credit);
        state = self.wait(state, begin, |state| (!state.is_off()).then(|| due(state)));
        let due = state.due(ran);
        drop(state);
        drop(guard);
        let held = begin.elapsed();
        let mut state = lock(&self.state);
        state.stopped_since = None;
        state.stopped_time += held;
        (credit + held).saturating_sub(due).min(SLICE)
    }

    /// Waits until the time that `until` returns has passed since `start`, or it returns `None`.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, ThrottleState>,
        start: Instant,
        until: impl Fn(&ThrottleState) -> Option<Duration>,
    ) -> MutexGuard<'a, ThrottleState> {
        while let Some(time) = until(&state) {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state = unpoisoned(self.changed.wait_timeout(state, left)).0;
        }
        state
    }

    fn count_failure(&self, error: Box<dyn Error + Send + Sync>) {
        let mut state = lock(&self.state);
        state.failures += 1;
        let first = state.failures == 1;
        drop(state);
        if first {
            log::warn!("vCPUs cannot be paused, so they are not throttled: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
