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
use crate::exclusion::blocked_time::BlockedTime;
use crate::exclusion::kick::VcpuShared;
use crate::exclusion::run_state::Place;

/// How long a waiter sleeps at most before it interrupts the vCPUs again.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// How many want the guests out of KVM_RUN.
    exclusions: AtomicUsize,
    /// How many want the vCPUs' threads at rest.
    pauses: AtomicUsize,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Signals that were sent to get guests out.
    kicks: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    vcpus: Vec<Weak<VcpuShared>>,
    standstill: BlockedTime,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, vcpu: &Arc<VcpuShared>) {
        let vcpus = &mut self.lock().vcpus;
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
        let mut inner = self.lock();
        // Under the lock, so that whoever sees it there finds that it stands still.
        vcpu.state.leave(place);
        self.changed.notify_all();
        if !closed() {
            return;
        }
        inner.standstill.begin();
        while closed() {
            inner = self
                .changed
                .wait_timeout(inner, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.standstill.end();
    }

    /// Does `work`, for which a vCPU of the calling thread has to stand still.
    pub(crate) fn count_blocked<T>(&self, work: impl FnOnce() -> T) -> T {
        self.lock().standstill.begin();
        let result = work();
        self.lock().standstill.end();
        result
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
        let mut inner = self.lock();
        // Once is enough: who is not in the guest at this moment sees the wish before going
        // there. Again only for what nobody has thought of.
        let mut interrupts = true;
        loop {
            let mut running = 0;
            for vcpu in inner.vcpus.iter().filter_map(Weak::upgrade) {
                if !busy(vcpu.state.place()) {
                    continue;
                }
                if interrupts && vcpu.interrupt() {
                    self.kicks.fetch_add(1, Ordering::Relaxed);
                }
                running += usize::from(busy(vcpu.state.place()));
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
            let (waited, timeout) = self
                .changed
                .wait_timeout(inner, left.min(PATIENCE))
                .unwrap_or_else(PoisonError::into_inner);
            (inner, interrupts) = (waited, timeout.timed_out());
        }
    }

    /// How many signals were sent to get guests out, and for how long vCPUs stood still,
    /// each counted, up to now.
    pub(crate) fn cost(&self) -> (u64, Duration) {
        let stood_still = self.lock().standstill.total();
        (self.kicks.load(Ordering::Relaxed), stood_still)
    }

    fn open(&self, count: &AtomicUsize) {
        count.fetch_sub(1, Ordering::Release);
        self.wake();
    }

    /// Runs `change` while no vCPU executes guest code.
    pub(crate) fn exclude<T>(&self, change: impl FnOnce() -> T) -> T {
        struct Reopen<'a>(&'a Gate);
        impl Drop for Reopen<'_> {
            fn drop(&mut self) {
                self.0.open(&self.0.exclusions);
            }
        }
        self.exclusions.fetch_add(1, Ordering::SeqCst);
        let _reopen = Reopen(self);
        // A guest leaves KVM_RUN when it is interrupted, whatever its state.
        let _ = self.wait_for(|place| place == Place::Guest, None);
        change()
    }

    /// Waits at most `timeout` until every vCPU's thread is at rest.
    pub(crate) fn pause(self: &Arc<Self>, timeout: Duration) -> Result<PauseGuard, KvmError> {
        let vcpus: Vec<_> = self.lock().vcpus.iter().filter_map(Weak::upgrade).collect();
        if let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.is_current_thread()) {
            return Err(KvmError::PauseFromVcpu { id: vcpu.id });
        }
        self.pauses.fetch_add(1, Ordering::SeqCst);
        let guard = PauseGuard(self.clone());
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
pub struct PauseGuard(Arc<Gate>);

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.0.open(&self.0.pauses);
    }
}

impl fmt::Debug for PauseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PauseGuard")
    }
}
