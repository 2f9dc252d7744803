//! Keeping vCPUs out of the guest for a while.
//!
//! Two things are asked for. A change of the memory slots needs that nobody
//! *executes guest code*, for microseconds; it may be asked for by a vCPU's own
//! thread, from a device's handler. A pause needs that no vCPU's thread *acts for
//! the guest* either, for as long as the pause lasts.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::KvmError;
use crate::kick::VcpuShared;
use crate::run_state::Place;

/// How long a waiter sleeps at most before it interrupts the vCPUs again.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// How many want the guests out of KVM_RUN.
    exclusions: AtomicUsize,
    /// How many want the vCPUs' threads at rest.
    pauses: AtomicUsize,
    vcpus: Mutex<Vec<Weak<VcpuShared>>>,
    changed: Condvar,
    /// How often guests were interrupted, and for how many nanoseconds kept out.
    kicks: AtomicU64,
    stood_still: AtomicU64,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<VcpuShared>>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, vcpu: &Arc<VcpuShared>) {
        let mut vcpus = self.lock();
        vcpus.retain(|vcpu| vcpu.strong_count() > 0);
        vcpus.push(Arc::downgrade(vcpu));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.exclusions.load(Ordering::Relaxed) + self.pauses.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusions.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_pause_wanted(&self) -> bool {
        self.pauses.load(Ordering::Relaxed) > 0
    }

    /// A vCPU's thread is at `place` now; wakes those who wait for that.
    pub(crate) fn announce(&self, vcpu: &VcpuShared, place: Place) {
        vcpu.state.leave(place);
        if self.is_closed() {
            // Taking the lock orders this after a waiter's look at the state.
            self.wake();
        }
    }

    /// Waits at `place` for as long as `closed` says.
    pub(crate) fn wait_while(&self, vcpu: &VcpuShared, place: Place, closed: impl Fn() -> bool) {
        self.announce(vcpu, place);
        let mut vcpus = self.lock();
        while closed() {
            vcpus = self
                .changed
                .wait_timeout(vcpus, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Lets those who wait look again.
    pub(crate) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until no vCPU is at a place that `busy` names, interrupting guests.
    fn wait_for(
        &self,
        busy: impl Fn(Place) -> bool,
        deadline: Option<Instant>,
    ) -> Result<(), usize> {
        fence(Ordering::SeqCst);
        let mut vcpus = self.lock();
        loop {
            let mut running = 0;
            for vcpu in vcpus.iter().filter_map(Weak::upgrade) {
                if busy(vcpu.state.place()) {
                    self.kicks.fetch_add(1, Ordering::Relaxed);
                    vcpu.interrupt();
                    running += usize::from(busy(vcpu.state.place()));
                }
            }
            if running == 0 {
                return Ok(());
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => PATIENCE,
            };
            if left.is_zero() {
                return Err(running);
            }
            vcpus = self
                .changed
                .wait_timeout(vcpus, left.min(PATIENCE))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How often guests were interrupted, and for how long they were kept out. Times that
    /// overlap count each.
    pub(crate) fn cost(&self) -> (u64, Duration) {
        let nanoseconds = self.stood_still.load(Ordering::Relaxed);
        (self.kicks.load(Ordering::Relaxed), Duration::from_nanos(nanoseconds))
    }

    fn count_still(&self, since: Instant) {
        let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stood_still.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn open(&self, count: &AtomicUsize) {
        count.fetch_sub(1, Ordering::Release);
        self.wake();
    }

    /// Runs `change` while no vCPU executes guest code.
    pub(crate) fn exclude<T>(&self, change: impl FnOnce() -> T) -> T {
        struct Reopen<'a>(&'a Gate, Instant);
        impl Drop for Reopen<'_> {
            fn drop(&mut self) {
                self.0.open(&self.0.exclusions);
                self.0.count_still(self.1);
            }
        }
        self.exclusions.fetch_add(1, Ordering::SeqCst);
        let _reopen = Reopen(self, Instant::now());
        // A guest leaves KVM_RUN when it is interrupted, whatever its state.
        let _ = self.wait_for(|place| place == Place::Guest, None);
        change()
    }

    /// Waits at most `timeout` until every vCPU's thread is at rest.
    pub(crate) fn pause(self: &Arc<Self>, timeout: Duration) -> Result<PauseGuard, KvmError> {
        let vcpus: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        if let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.is_current_thread()) {
            return Err(KvmError::PauseFromVcpu { id: vcpu.id });
        }
        self.pauses.fetch_add(1, Ordering::SeqCst);
        let guard = PauseGuard(self.clone(), Instant::now());
        let deadline = Instant::now().checked_add(timeout);
        match self.wait_for(|place| place != Place::Parked, deadline) {
            Ok(()) => Ok(guard),
            Err(running) => {
                Err(KvmError::PauseTimeout { running, vcpus: vcpus.len(), waited: timeout })
            }
        }
    }
}

/// Holding one proves that no vCPU of the machine runs, nor handles an exit; they go
/// on when the last one is dropped.
#[must_use = "the vCPUs go on when this is dropped"]
pub struct PauseGuard(Arc<Gate>, Instant);

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.0.open(&self.0.pauses);
        self.0.count_still(self.1);
    }
}

impl fmt::Debug for PauseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PauseGuard")
    }
}
