//! The right to take a client's bits: of the claim or, without one, of all harvests.
//!
//! There is a word for each client: its upper half is the number of the current claim, its lower
//! half counts the harvests that run without a claim. A harvest without the claim is refused as
//! soon as there is one; a claim waits for the harvests that run already, so that a client which
//! harvests all the time cannot keep it from being taken. It is granted when there are none left:
//! no bit that is marked after a claim is taken past it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The right to take a client's bits; see the module's documentation.
#[derive(Default)]
pub(super) struct Takers(AtomicU64);

const HALF: u32 = 32;
/// How long a claim waits for running harvests: one whose visitor waits for the claim would block
/// it for ever.
const MAX_WAIT: Duration = Duration::from_millis(100);

impl Takers {
    /// Admits a harvest without a claim; `None` if there is a claim.
    pub(super) fn admit(&self) -> Option<Unclaimed<'_>> {
        let free = |takers: u64| (takers >> HALF == 0).then_some(takers + 1);
        let admitted = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok();
        admitted.then(|| Unclaimed(self))
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes the claim; false if there is one already, or if a harvest runs for too long.
    pub(super) fn claim(&self, number: u64) -> bool {
        let claimed = number << HALF;
        let free = |takers: u64| (takers >> HALF == 0).then_some(takers | claimed);
        if self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_err() {
            return false;
        }
        // No harvest begins from here on.
        let begin = Instant::now();
        while !self.has(number) {
            if begin.elapsed() >= MAX_WAIT {
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

    /// Ends the claim of this number, if it is still the current one.
    pub(super) fn release(&self, number: u64) {
        let _ = self.0.compare_exchange(number << HALF, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends the current claim, whichever it is.
    pub(super) fn end(&self) {
        self.0.fetch_and((1 << HALF) - 1, Ordering::AcqRel);
    }
}

/// A running harvest without a claim: no claim is granted meanwhile.
pub(crate) struct Unclaimed<'a>(&'a Takers);

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
