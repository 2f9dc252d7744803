//! Keeping each vCPU from dirtying more memory than it may.
//!
//! A ring is emptied when somebody asks, or when it is full: 65,536 entries of 4 KiB are
//! 256 MiB. So a thread looks into the rings every millisecond, without taking anything,
//! and counts what each vCPU has dirtied. Who has dirtied more than it was given by then (a
//! token bucket) is called out of the guest and waits, as in a pause, until it has paid.
//! Pauses find it at rest, kicks get it out.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use ram_block::PageSize;

use crate::exclusion::gate::Gate;
use crate::exclusion::kick::VcpuShared;
use crate::machine::Machine;

/// How often rings are looked into.
const LOOK: Duration = Duration::from_millis(1);

/// How long a look is put off at most, while all vCPUs wait.
const LATEST: Duration = Duration::from_millis(10);

/// What is not dirtied is saved up for so long.
const SAVED: f64 = 0.02;

#[derive(Debug, Default)]
pub(crate) struct DirtyLimit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes per second of each vCPU.
    limit: Option<u64>,
    /// Whether there is a thread.
    kept: bool,
    vcpus: Vec<Limited>,
    /// For how long vCPUs were kept out, of which nobody is any more.
    waited: Duration,
}

#[derive(Debug)]
struct Limited {
    vcpu: Weak<VcpuShared>,
    /// The number of its ring.
    ring: usize,
    bucket: Bucket,
    /// Since when it is kept out.
    out: Option<Instant>,
}

/// What a vCPU may still dirty.
#[derive(Debug)]
struct Bucket {
    /// In bytes; less than none if it has dirtied too much.
    left: f64,
    /// Entries of its ring that were counted.
    seen: u64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant, seen: u64) -> Self {
        Self { left: 0.0, seen, at: now }
    }

    /// The most that it saves up.
    fn most(limit: u64) -> f64 {
        (limit as f64 * SAVED).max(PageSize::host().bytes() as f64)
    }

    /// Gives what the time is worth, and takes what was dirtied: `seen` entries by now. Who
    /// was out for too long, because the host is busy, saves up more.
    fn update(&mut self, now: Instant, seen: u64, limit: u64, was_out: bool) {
        let time = now.saturating_duration_since(self.at).as_secs_f64();
        let dirtied = seen.saturating_sub(self.seen);
        let most = Self::most(limit) * if was_out { 10.0 } else { 1.0 };
        let spent = dirtied as f64 * PageSize::host().bytes() as f64;
        self.left = (self.left + time * limit as f64 - spent).min(most.max(self.left));
        (self.at, self.seen) = (now, self.seen.max(seen));
    }

    /// How long the vCPU is to wait, if it is to: a little longer than it has to pay, to run
    /// for a little longer then.
    fn wait(&self, limit: u64, is_out: bool) -> Option<Duration> {
        let missing = Self::most(limit) / 2.0 - self.left;
        let waits = self.left < 0.0 || is_out && missing > 0.0;
        let time = || Duration::try_from_secs_f64(missing / limit as f64).unwrap_or(Duration::MAX);
        waits.then(time)
    }
}

impl Limited {
    fn throttle(&mut self, now: Instant) {
        if self.out.is_none() {
            self.out = Some(now);
            self.vcpu.upgrade().into_iter().for_each(|vcpu| vcpu.keep_out());
        }
    }

    /// Returns for how long it was kept out.
    fn unthrottle(&mut self, now: Instant) -> Option<Duration> {
        let since = self.out.take()?;
        self.vcpu.upgrade().into_iter().for_each(|vcpu| vcpu.let_in());
        Some(now.saturating_duration_since(since))
    }
}

impl State {
    fn let_all_in(&mut self) {
        let now = Instant::now();
        self.waited +=
            self.vcpus.iter_mut().filter_map(|vcpu| vcpu.unthrottle(now)).sum::<Duration>();
    }

    /// Looks at all vCPUs; returns when to look again.
    fn look(&mut self, limit: u64, gate: &Gate, seen: impl Fn(usize) -> u64) -> Duration {
        self.forget_the_dead();
        let mut next = LATEST;
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
                    next = LOOK;
                }
            }
        }
        next.max(LOOK)
    }

    fn forget_the_dead(&mut self) {
        let now = Instant::now();
        for limited in self.vcpus.iter_mut().filter(|limited| limited.vcpu.strong_count() == 0) {
            self.waited += limited.unthrottle(now).unwrap_or_default();
        }
        self.vcpus.retain(|limited| limited.vcpu.strong_count() > 0);
    }
}

impl DirtyLimit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new vCPU, with the number of its ring.
    pub(crate) fn add(&self, vcpu: &Arc<VcpuShared>, ring: usize) {
        let mut state = self.lock();
        state.forget_the_dead();
        let (vcpu, bucket) = (Arc::downgrade(vcpu), Bucket::new(Instant::now(), 0));
        state.vcpus.push(Limited { vcpu, ring, bucket, out: None });
    }

    pub(crate) fn get(&self) -> Option<u64> {
        self.lock().limit
    }

    /// From now on each vCPU of `machine` dirties at most so many bytes per second.
    pub(crate) fn set(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        if limit.is_some() && !state.kept {
            let (this, machine) = (self.clone(), Arc::downgrade(machine));
            Builder::new().name("dirty limit".to_owned()).spawn(move || this.keep(&machine))?;
            state.kept = true;
        }
        state.limit = limit;
        // What was dirtied until now is forgiven.
        state.let_all_in();
        for limited in &mut state.vcpus {
            limited.bucket = Bucket::new(Instant::now(), machine.ring_seen(limited.ring));
        }
        drop(state);
        machine.gate().wake();
        self.changed.notify_all();
        Ok(())
    }

    /// Keeps the limit until there is none, or no machine.
    fn keep(&self, machine: &Weak<Machine>) {
        let mut state = self.lock();
        while let (Some(limit), Some(machine)) = (state.limit, machine.upgrade()) {
            let next = state.look(limit, machine.gate(), |ring| machine.ring_seen(ring));
            // Whoever drops the machine's last reference may be this thread.
            drop(state);
            drop(machine);
            state = self.lock();
            if state.limit.is_some() {
                let waited = self.changed.wait_timeout(state, next);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        state.kept = false;
    }

    /// For how long vCPUs were kept out, that of all added up, up to now.
    pub(crate) fn waited(&self) -> Duration {
        let state = self.lock();
        let out = state.vcpus.iter().filter_map(|limited| limited.out);
        state.waited + out.map(|since| since.elapsed()).sum::<Duration>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 16 << 20;

    /// A vCPU that dirties `rate` bytes per second whenever it may, looked at every
    /// `look`: what it has dirtied after `time`, in bytes, and how long it was out.
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
            let (_, waited) = play(part * LIMIT as f64, LOOK, Duration::from_secs(2));
            assert_eq!(waited, Duration::ZERO, "{part} of the limit");
        }
    }

    #[test]
    fn who_dirties_more_comes_to_the_limit() {
        for times in [1.2, 2.0, 10.0, 100.0] {
            for look in [LOOK, 3 * LOOK, 40 * LOOK] {
                // What is dirtied between two looks is a small part of all.
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
        assert!(bucket.left <= LIMIT as f64 * SAVED);
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
