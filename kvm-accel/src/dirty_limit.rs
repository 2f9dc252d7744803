//! The dirty limit: how much memory each vCPU may dirty per second.
//!
//! A ring is harvested only by a sync, or when it is full: 65,536 entries of 4 KiB are 256 MiB. So
//! a thread polls the rings every millisecond, without taking entries, and counts what each vCPU
//! has dirtied. A vCPU that has used up its tokens (a token bucket) is forced to exit and blocked,
//! as in a pause, until the bucket has filled up again. A pause finds it stopped, and a kick makes
//! its `run` return.

use std::io;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use ram_block::PageSize;

use crate::exclusion::gate::Gate;
use crate::exclusion::kick::VcpuShared;
use crate::locks::{lock, unpoisoned};
use crate::machine::Machine;

/// How often rings are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The longest time between two polls, while all vCPUs are blocked.
const MAX_INTERVAL: Duration = Duration::from_millis(10);

/// The most that a vCPU saves up when it dirties less, in seconds of the limit.
const MAX_SAVED_SECONDS: f64 = 0.02;

#[derive(Debug, Default)]
pub(crate) struct DirtyLimit {
    state: Mutex<LimitState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LimitState {
    /// Bytes per second of each vCPU.
    limit: Option<u64>,
    /// Whether the thread runs.
    has_thread: bool,
    vcpus: Vec<Limited>,
    /// Time that vCPUs were throttled, without those that are throttled now.
    waited: Duration,
}

#[derive(Debug)]
struct Limited {
    vcpu: Weak<VcpuShared>,
    /// The number of its ring.
    ring: usize,
    bucket: Bucket,
    /// Since when it is throttled, if it is.
    out: Option<Instant>,
}

/// A vCPU's token bucket.
#[derive(Debug)]
struct Bucket {
    /// Bytes that the vCPU may still dirty; negative if it has dirtied too much.
    left: f64,
    /// Entries of its ring that were counted so far.
    seen: u64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant, seen: u64) -> Self {
        Self { left: 0.0, seen, at: now }
    }

    /// How many bytes the bucket holds.
    fn capacity(limit: u64) -> f64 {
        (limit as f64 * MAX_SAVED_SECONDS).max(PageSize::host().bytes() as f64)
    }

    /// Adds the tokens for the time since the last update, and takes those for what was dirtied:
    /// `seen` entries were pushed to the ring so far. A vCPU that was blocked for too long, because
    /// the host is busy, may save up ten times as much.
    fn update(&mut self, now: Instant, seen: u64, limit: u64, was_out: bool) {
        let time = now.saturating_duration_since(self.at).as_secs_f64();
        let dirtied = seen.saturating_sub(self.seen);
        let most = Self::capacity(limit) * if was_out { 10.0 } else { 1.0 };
        let spent = dirtied as f64 * PageSize::host().bytes() as f64;
        self.left = (self.left + time * limit as f64 - spent).min(most.max(self.left));
        (self.at, self.seen) = (now, self.seen.max(seen));
    }

    /// How long to block the vCPU, or `None` to let it run. It is blocked until its bucket is half
    /// full, so that it then runs for a while.
    fn wait(&self, limit: u64, is_out: bool) -> Option<Duration> {
        let missing = Self::capacity(limit) / 2.0 - self.left;
        let waits = self.left < 0.0 || is_out && missing > 0.0;
        let time = || Duration::try_from_secs_f64(missing / limit as f64).unwrap_or(Duration::MAX);
        waits.then(time)
    }
}

impl Limited {
    fn throttle(&mut self, now: Instant) {
        if self.out.is_none() {
            self.out = Some(now);
            self.vcpu.upgrade().into_iter().for_each(|vcpu| vcpu.throttle());
        }
    }

    /// Returns for how long it was throttled, if it was.
    fn unthrottle(&mut self, now: Instant) -> Option<Duration> {
        let since = self.out.take()?;
        self.vcpu.upgrade().into_iter().for_each(|vcpu| vcpu.unthrottle());
        Some(now.saturating_duration_since(since))
    }
}

impl LimitState {
    fn unthrottle_all(&mut self) {
        let now = Instant::now();
        self.waited +=
            self.vcpus.iter_mut().filter_map(|vcpu| vcpu.unthrottle(now)).sum::<Duration>();
    }

    /// Polls all vCPUs; returns the time until the next poll.
    fn poll(&mut self, limit: u64, gate: &Gate, seen: impl Fn(usize) -> u64) -> Duration {
        self.remove_dropped();
        let mut next = MAX_INTERVAL;
        for limited in &mut self.vcpus {
            let now = Instant::now();
            let was_out = limited.out.is_some();
            limited.bucket.update(now, seen(limited.ring), limit, was_out);
            match limited.bucket.wait(limit, was_out) {
                Some(time) => {
                    limited.throttle(now);
                    next = next.min(time);
                }
                None => {
                    if let Some(time) = limited.unthrottle(now) {
                        self.waited += time;
                        gate.wake();
                    }
                    next = POLL_INTERVAL;
                }
            }
        }
        next.max(POLL_INTERVAL)
    }

    fn remove_dropped(&mut self) {
        let now = Instant::now();
        for limited in self.vcpus.iter_mut().filter(|limited| limited.vcpu.strong_count() == 0) {
            self.waited += limited.unthrottle(now).unwrap_or_default();
        }
        self.vcpus.retain(|limited| limited.vcpu.strong_count() > 0);
    }
}

impl DirtyLimit {
    /// Adds a new vCPU, with the number of its ring.
    pub(crate) fn add(&self, vcpu: &Arc<VcpuShared>, ring: usize) {
        let mut state = lock(&self.state);
        state.remove_dropped();
        let (vcpu, bucket) = (Arc::downgrade(vcpu), Bucket::new(Instant::now(), 0));
        state.vcpus.push(Limited { vcpu, ring, bucket, out: None });
    }

    pub(crate) fn get(&self) -> Option<u64> {
        lock(&self.state).limit
    }

    /// Limits what each vCPU of `machine` dirties to so many bytes per second from now on.
    pub(crate) fn set(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let mut state = lock(&self.state);
        if limit.is_some() && !state.has_thread {
            let (this, machine) = (self.clone(), Arc::downgrade(machine));
            Builder::new().name("dirty limit".to_owned()).spawn(move || this.enforce(&machine))?;
            state.has_thread = true;
        }
        state.limit = limit;
        // What was dirtied until now does not count.
        state.unthrottle_all();
        for limited in &mut state.vcpus {
            limited.bucket = Bucket::new(Instant::now(), machine.ring_seen(limited.ring));
        }
        drop(state);
        machine.gate().wake();
        self.changed.notify_all();
        Ok(())
    }

    /// Enforces the limit until it is removed, or the machine is dropped.
    fn enforce(&self, machine: &Weak<Machine>) {
        let mut state = lock(&self.state);
        while let (Some(limit), Some(machine)) = (state.limit, machine.upgrade()) {
            let next = state.poll(limit, machine.gate(), |ring| machine.ring_seen(ring));
            // This may drop the machine's last reference: not under the lock.
            drop(state);
            drop(machine);
            state = lock(&self.state);
            if state.limit.is_some() {
                state = unpoisoned(self.changed.wait_timeout(state, next)).0;
            }
        }
        state.has_thread = false;
    }

    /// Time that vCPUs were throttled, summed over vCPUs, up to now.
    pub(crate) fn waited(&self) -> Duration {
        let state = lock(&self.state);
        let out = state.vcpus.iter().filter_map(|limited| limited.out);
        state.waited + out.map(|since| since.elapsed()).sum::<Duration>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 16 << 20;

    /// A vCPU that dirties `rate` bytes per second while it runs, polled every `look`: what it has
    /// dirtied after `time`, in bytes, and how long it was throttled.
    fn play(rate: f64, look: Duration, time: Duration) -> (f64, Duration) {
        let begin = Instant::now();
        let page = PageSize::host().bytes() as f64;
        let (mut bucket, mut out, mut waited) = (Bucket::new(begin, 0), false, Duration::ZERO);
        let (mut pages, mut now) = (0.0, Duration::ZERO);
        while now < time {
            now += look;
            match out {
                true => waited += look,
                false => pages += look.as_secs_f64() * rate / page,
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            bucket.update(begin + now, pages as u64, LIMIT, out);
            out = bucket.wait(LIMIT, out).is_some();
        }
        (pages * page, waited)
    }

    #[test]
    fn who_dirties_less_is_never_kept_out() {
        for part in [0.0, 0.3, 0.9] {
            let (_, waited) = play(part * LIMIT as f64, POLL_INTERVAL, Duration::from_secs(2));
            assert_eq!(waited, Duration::ZERO, "{part} of the limit");
        }
    }

    #[test]
    fn who_dirties_more_comes_to_the_limit() {
        for times in [1.2, 2.0, 10.0, 100.0] {
            for look in [POLL_INTERVAL, 3 * POLL_INTERVAL, 40 * POLL_INTERVAL] {
                // What is dirtied between two polls is a small part of the whole.
                if look.mul_f64(times) > Duration::from_millis(400) {
                    continue;
                }
                let (dirtied, waited) = play(times * LIMIT as f64, look, Duration::from_secs(10));
                let part = dirtied / (10.0 * LIMIT as f64);
                assert!((0.95..1.05).contains(&part), "{times} times: {part}, {waited:?} out");
            }
        }
    }

    #[test]
    fn what_was_saved_up_is_little() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(begin, 5);
        bucket.update(begin + Duration::from_secs(3600), 5, LIMIT, false);
        assert!(bucket.left <= LIMIT as f64 * MAX_SAVED_SECONDS);
        // A second's worth at once has to be paid.
        let pages = LIMIT / PageSize::host().bytes();
        bucket.update(begin + Duration::from_secs(3600), 5 + pages, LIMIT, false);
        let wait = bucket.wait(LIMIT, false).unwrap();
        assert!((950..1050).contains(&wait.as_millis()), "{wait:?}");
        // The least that can be asked for is a page now and then.
        let mut bucket = Bucket::new(begin, 0);
        bucket.update(begin, 1, 1, false);
        assert!(bucket.wait(1, false).unwrap() > Duration::from_secs(4000));
    }
}
