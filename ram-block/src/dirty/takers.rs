//! Who may take a client's bits: whoever has the claim, or all harvests that run without one.
//!
//! A word for each client says who may take its bits: the number of the claim that stands, in
//! its upper half, and how many harvests run without a claim, in its lower half. A harvest
//! without the claim is refused as soon as there is one; a claim waits for the harvests that run
//! already, so that somebody who harvests all the time does not keep it from being taken. It is
//! given out when there are none: no bit that is marked after a claim goes to anybody else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Who takes a client's bits; see the module's documentation.
#[derive(Default)]
pub(super) struct Takers(AtomicU64);

const HALF: u32 = 32;
/// How long a claim waits for harvests under way: one whose visitor waits for the claim would
/// hold it for ever.
const PATIENCE: Duration = Duration::from_millis(100);

impl Takers {
    /// Admits a harvest without a claim; none if a claim stands.
    pub(super) fn admit(&self) -> Option<Unclaimed<'_>> {
        let free = |takers: u64| (takers >> HALF == 0).then_some(takers + 1);
        let admitted = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok();
        admitted.then(|| Unclaimed(self))
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes the claim; false if one stands, or if somebody harvests for too long.
    pub(super) fn claim(&self, number: u64) -> bool {
        let claimed = number << HALF;
        let free = |takers: u64| (takers >> HALF == 0).then_some(takers | claimed);
        if self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_err() {
            return false;
        }
        // No harvest begins from here on.
        let begin = Instant::now();
        while !self.has(number) {
            if begin.elapsed() >= PATIENCE {
                self.end();
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.0.load(Ordering::Acquire) == number << HALF
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.0.load(Ordering::Acquire) >> HALF != 0
    }

    /// Ends the claim of this number, if it still stands.
    pub(super) fn release(&self, number: u64) {
        let _ = self.0.compare_exchange(number << HALF, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends whatever claim stands.
    pub(super) fn end(&self) {
        self.0.fetch_and((1 << HALF) - 1, Ordering::AcqRel);
    }
}

/// A harvest without a claim, while it runs: no claim can be taken.
pub(crate) struct Unclaimed<'a>(&'a Takers);

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
