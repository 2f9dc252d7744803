//! How long tests wait for what must happen.
//!
//! A deadline ends a test that hangs; it judges nothing else. On a slow or busy host
//! `TEST_DEADLINE_SCALE` makes all of them longer: `TEST_DEADLINE_SCALE=10` ten times. The
//! other crates' tests include this file by its path, so that there is one variable.
#![allow(dead_code, unreachable_pub)] // no includer uses all of it

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What multiplies all deadlines.
const VARIABLE: &str = "TEST_DEADLINE_SCALE";

/// The factor that `text` says, 1 without any.
///
/// # Errors
///
/// What is wanted, if it says none.
pub fn factor(text: Option<&str>) -> Result<f64, String> {
    let Some(text) = text else { return Ok(1.0) };
    let factor = text.parse().ok().filter(|factor| (0.001..=10_000.0).contains(factor));
    factor.ok_or(format!("{VARIABLE} is {text:?}, where a factor from 0.001 to 10000 is wanted"))
}

/// `time`, made longer as `TEST_DEADLINE_SCALE` says.
///
/// # Panics
///
/// If the variable is no factor.
pub fn scaled(time: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let asked = || factor(std::env::var(VARIABLE).ok().as_deref());
    time.mul_f64(*FACTOR.get_or_init(|| asked().unwrap_or_else(|error| panic!("{error}"))))
}

/// So many seconds, made longer as `TEST_DEADLINE_SCALE` says.
pub fn seconds(count: u64) -> Duration {
    scaled(Duration::from_secs(count))
}

/// Waits until `condition` holds, for 30 s at most, which are scaled.
///
/// # Panics
///
/// If it does not hold by then.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + seconds(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {:?}", seconds(30));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `body` in a thread of its own, for two minutes at most, which are scaled.
///
/// # Panics
///
/// If it takes longer, for a hang is a fault, or if `body` panics.
pub fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = channel();
    let thread = std::thread::spawn(move || {
        let result = body();
        let _ = done.send(());
        result
    });
    if is_done.recv_timeout(seconds(120)) == Err(RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
