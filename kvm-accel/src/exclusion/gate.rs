//! Keeping vCPUs out of the guest for a while.
//!
//! There are two kinds of requests. A change of the memory slots needs that no vCPU *executes guest
//! code*, for microseconds (QEMU: `start_exclusive`); a vCPU's own thread may request it, in a
//! device's handler. A pause needs that no vCPU's thread *acts for the guest* either, for as long
//! as the pause lasts (QEMU: `pause_all_vcpus`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::error::KvmError;
use crate::exclusion::blocked_time::BlockedTime;
use crate::exclusion::kick::VcpuShared;
use crate::exclusion::run_state::VcpuMode;
use crate::locks::{lock, unpoisoned};

/// How long a waiter sleeps at most before it signals the vCPUs again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// How many threads request that guests exit from KVM_RUN.
    exclusions: AtomicUsize,
    /// How many threads request that the vCPUs' threads are parked.
    pauses: AtomicUsize,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Signals that were sent to force guests to exit.
    kicks: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    vcpus: Vec<Weak<VcpuShared>>,
    blocked_time: BlockedTime,
}

impl Gate {
    pub(crate) fn add(&self, vcpu: &Arc<VcpuShared>) {
        let vcpus = &mut lock(&self.inner).vcpus;
        vcpus.retain(|vcpu| vcpu.strong_count() > 0);
        vcpus.push(Arc::downgrade(vcpu));
    }

    /// Whether a guest must not be entered. Acquire: a vCPU that finds the gate open sees what was
    /// done while it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.exclusions.load(Ordering::Acquire) + self.pauses.load(Ordering::Acquire) > 0
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusions.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_pause_wanted(&self) -> bool {
        self.pauses.load(Ordering::Relaxed) > 0
    }

    /// Sets the place of a vCPU's thread, and wakes threads that wait for it.
    pub(crate) fn announce(&self, vcpu: &VcpuShared, place: VcpuMode) {
        vcpu.state.leave(place);
        if self.is_closed() {
            // Taking the lock orders this after a waiter's check of the state.
            self.wake();
        }
    }

    /// Blocks the vCPU at `place` while `closed` returns true.
    pub(crate) fn wait_while(&self, vcpu: &VcpuShared, place: VcpuMode, closed: impl Fn() -> bool) {
        let mut inner = lock(&self.inner);
        // Under the lock: a thread that holds it and sees this place sees the vCPU counted as
        // blocked, too.
        vcpu.state.leave(place);
        self.changed.notify_all();
        if !closed() {
            return;
        }
        inner.blocked_time.begin();
        while closed() {
            inner = unpoisoned(self.changed.wait_timeout(inner, RETRY_INTERVAL)).0;
        }
        inner.blocked_time.end();
    }

    /// Runs `work`, which blocks the vCPU of the calling thread.
    pub(crate) fn count_blocked<T>(&self, work: impl FnOnce() -> T) -> T {
        lock(&self.inner).blocked_time.begin();
        let result = work();
        lock(&self.inner).blocked_time.end();
        result
    }

    /// Makes waiting threads check their conditions again.
    pub(crate) fn wake(&self) {
        drop(lock(&self.inner));
        self.changed.notify_all();
    }

    /// Waits until no vCPU is at a place for which `busy` is true; signals guests to exit.
    fn wait_for(
        &self,
        busy: impl Fn(VcpuMode) -> bool,
        deadline: Option<Instant>,
    ) -> Result<(), usize> {
        fence(Ordering::SeqCst);
        let mut inner = lock(&self.inner);
        // One signal is enough: a vCPU that is not in the guest at this moment sees the request
        // before it enters. After a timeout they are signalled again, only to be robust.
        let mut interrupts = true;
        loop {
            let mut running = 0;
            for vcpu in inner.vcpus.iter().filter_map(Weak::upgrade) {
                if !busy(vcpu.state.mode()) {
                    continue;
                }
                if interrupts && vcpu.interrupt() {
                    self.kicks.fetch_add(1, Ordering::Relaxed);
                }
                running += usize::from(busy(vcpu.state.mode()));
            }
            if running == 0 {
                return Ok(());
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => RETRY_INTERVAL,
            };
            if left.is_zero() {
                return Err(running);
            }
            let waited = self.changed.wait_timeout(inner, left.min(RETRY_INTERVAL));
            let (waited, timeout) = unpoisoned(waited);
            (inner, interrupts) = (waited, timeout.timed_out());
        }
    }

    /// How many signals were sent to force guests to exit, and the blocked time summed over vCPUs,
    /// up to now.
    pub(crate) fn cost(&self) -> (u64, Duration) {
        let blocked = lock(&self.inner).blocked_time.total();
        (self.kicks.load(Ordering::Relaxed), blocked)
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
        // No deadline: a guest always exits from KVM_RUN when it is signalled.
        let _ = self.wait_for(|place| place == VcpuMode::Guest, None);
        change()
    }

    /// Waits at most `timeout` until every vCPU's thread is parked.
    pub(crate) fn pause(self: &Arc<Self>, timeout: Duration) -> Result<PauseGuard, KvmError> {
        let vcpus: Vec<_> = lock(&self.inner).vcpus.iter().filter_map(Weak::upgrade).collect();
        if let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.is_current_thread()) {
            return Err(KvmError::PauseFromVcpu { id: vcpu.id });
        }
        self.pauses.fetch_add(1, Ordering::SeqCst);
        let guard = PauseGuard(self.clone());
        let deadline = Instant::now().checked_add(timeout);
        match self.wait_for(|place| place != VcpuMode::Parked, deadline) {
            Ok(()) => Ok(guard),
            Err(running) => {
                Err(KvmError::PauseTimeout { running, vcpus: vcpus.len(), waited: timeout })
            }
        }
    }
}

/// Holding one proves that no vCPU of the machine executes guest code or handles an exit; they run
/// again when the last one is dropped.
#[derive(Debug)]
#[must_use = "the vCPUs go on when this is dropped"]
pub struct PauseGuard(Arc<Gate>);

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.0.open(&self.0.pauses);
    }
}
