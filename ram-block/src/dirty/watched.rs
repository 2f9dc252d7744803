//! The code client: pages with translations, and the hook that is called when they are written.
//!
//! The bitmap has the inverse meaning of the others: a bit is set while a page is
//! *watched*, which is what QEMU calls not dirty for code. While no page of a block is watched,
//! the client is off and a write costs what it costs without a translator; while one is, a write
//! to any other page costs one load more.
//!
//! # Why no stale translation is executed
//!
//! The translator sets the page's bit and then reads the page; a writer stores to the page and then
//! reads the bit. That is store buffering again: `watch` makes every writer pass a barrier between
//! the two (`DirtyMemory::fence_writers`), so that either the translator reads what was stored, or
//! the writer finds the bit.
//!
//! A writer that finds the bit calls the hook and clears the bit *after that*. So **a writer that
//! finds the bit clear knows that a call of the hook has returned** which began while the bit was
//! set, even if another writer found the bit first. Bits are set and cleared under a lock that is
//! held briefly ([`Reports`]), and that also guards a list of the calls of the hook that have not
//! returned. If a page is watched again during such a call, the call does not clear the bit: the
//! hook may have searched for translations before the new one could be found, so the next writer
//! has to call it again.
//!
//! # Nothing watched
//!
//! Writers read the bits only if the client is on in the mask of clients, which they load in any
//! case. This switch is one more level above the bits: `watch` sets it after the first bit and
//! before the barrier, and the thread that clears the last bit clears the switch after that, both
//! under the lock. So a writer that finds the switch clear knows the same as one that finds all
//! bits clear.
//!
//! All levels above a page are clear only when the page is, for the same reason: they are cleared
//! after the hooks, under the lock. So it is right to search a range from the top level down.
//!
//! # Why no two hooks wait for each other
//!
//! Of several writers that find a bit set, one calls the hook and the others wait: each takes the
//! *call lock* of the block, and then checks the bit again. A hook may write to other blocks, whose
//! hooks may write to others, and back to this one, while another thread does the same from another
//! block. If a thread inside of a hook waited for a call lock, that could be a circle. So it does
//! not:
//!
//! - A thread outside of all hooks waits for the call lock. It holds none that others wait for.
//! - A thread inside of a hook takes the call lock if that is free, and goes on without it
//!   otherwise: it calls the hook itself, beside the thread that holds the lock. No step above
//!   relies on the call lock, so the promise holds; only "one at a time" and "once" do not.
//! - A thread that writes the page whose hook it is inside of does not call the hook again from
//!   within: such a recursion might not end. If the page was watched again, the hook is called once
//!   more after it has returned. Here alone a write returns before its hook does, as the hook
//!   itself made the write.
//!
//! Threads wait only for call locks, and for the lock of the reports, which is held briefly and not
//! while a hook runs. So every chain of hooks ends, however long it is and however many threads run
//! along it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::bitmap::atomic::Bitmap;
use crate::bitmap::bits::bits_of;
use crate::bitmap::shifted::Shifted;
use crate::dirty::reports::{Reports, Watches, report};

/// Called with the number of a watched page that was written.
pub(super) type Hook = Arc<dyn Fn(u64) + Send + Sync>;

/// The code client's side of a block's `DirtyMemory`.
#[derive(Default)]
pub(crate) struct Watched {
    /// Reserved by the first `watch_code`.
    pub(super) pages: OnceLock<Bitmap>,
    /// Held while the hook is called, except perhaps if another hook is the cause.
    call_lock: Mutex<()>,
    /// Locked briefly, and last: no other lock is taken within.
    reports: Mutex<Reports>,
    /// Signalled when a report has ended.
    pub(super) ended: Condvar,
    /// Locked briefly. `Some` as long as there is a `CodeWatch`.
    hook: Mutex<Option<Hook>>,
    /// How many calls of the hook have begun, plus how often pages were unwatched.
    pub(super) invalidations: AtomicU64,
}

/// A hook that runs on this thread.
struct RunningHook {
    /// The address of the [`Watched`] whose hook it is.
    watched: usize,
    page: u64,
    report: u64,
}

thread_local! {
    /// The hooks that run on this thread, the innermost last.
    static RUNNING_HOOKS: RefCell<Vec<RunningHook>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread is inside of a hook of any block.
pub(super) fn in_a_hook() -> bool {
    // A thread whose thread-locals are gone may be inside of one: it must not wait.
    running_hooks(|all| !all.is_empty()).unwrap_or(true)
}

/// Accesses the list of hooks that run on this thread; `None` if the thread ends, and its
/// thread-locals are gone.
fn running_hooks<T>(access: impl FnOnce(&mut Vec<RunningHook>) -> T) -> Option<T> {
    RUNNING_HOOKS.try_with(|all| access(&mut all.borrow_mut())).ok()
}

/// Removes the innermost hook from this thread's list when it is dropped.
struct PopHook;

impl Drop for PopHook {
    fn drop(&mut self) {
        running_hooks(Vec::pop);
    }
}

/// Wakes the threads that wait for reports to end, when it is dropped.
struct Wake<'a>(&'a Watched);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        // Under the lock: a thread that has just checked the reports waits by now.
        let _reports = self.0.reports();
        self.0.ended.notify_all();
    }
}

impl Watched {
    pub(super) fn hook(&self) -> MutexGuard<'_, Option<Hook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reports(&self) -> MutexGuard<'_, Reports> {
        // Nothing that can panic runs between two changes.
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Whether this thread is inside of this block's hook.
    pub(super) fn is_in_hook(&self) -> bool {
        let this = |hook: &RunningHook| hook.watched == self.address();
        running_hooks(|all| all.iter().any(this)).unwrap_or(false)
    }

    /// The report of `page` whose hook this thread is inside of.
    fn report_of(&self, page: u64) -> Option<u64> {
        let this = |it: &&RunningHook| it.watched == self.address() && it.page == page;
        running_hooks(|all| all.iter().find(this).map(|it| it.report)).flatten()
    }

    /// Takes the call lock; inside of a hook only if it is free.
    fn lock_calls(&self) -> Option<MutexGuard<'_, ()>> {
        // A hook that panics leaves its page watched: the next write calls it again.
        if !in_a_hook() {
            return Some(self.call_lock.lock().unwrap_or_else(PoisonError::into_inner));
        }
        match self.call_lock.try_lock() {
            Ok(lock) => Some(lock),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn call_hook(&self, report: u64, page: u64) {
        self.invalidations.fetch_add(1, Ordering::AcqRel);
        let hook = self.hook().clone();
        if let Some(hook) = hook {
            let it = RunningHook { watched: self.address(), page, report };
            running_hooks(|all| all.push(it));
            let pop = PopHook;
            hook(page);
            drop(pop);
        }
    }

    /// Whether a write to `page` would be reported.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.get().is_some_and(|watched| watched.contains(page))
    }

    /// Whether there is a `CodeWatch`.
    pub(crate) fn exists(&self) -> bool {
        self.hook().is_some()
    }

    /// What writers of the block read, if it was ever watched; `enabled` is the mask of clients
    /// that are on.
    pub(super) fn watches<'a>(&'a self, enabled: &'a AtomicU64) -> Option<Watches<'a, AtomicU64>> {
        Some(Watches { enabled, pages: self.pages.get()? })
    }

    /// Every mark calls this, after the write to `pages`.
    #[inline]
    pub(super) fn written(&self, enabled: &AtomicU64, pages: &Range<u64>) {
        if self.pages.get().is_some_and(|watched| watched.any(pages)) {
            self.report(enabled, pages);
        }
    }

    #[cold]
    fn report(&self, enabled: &AtomicU64, pages: &Range<u64>) {
        let Some(watches) = self.watches(enabled) else { return };
        let _wake = Wake(self);
        let _calls = self.lock_calls();
        let (lock, report_of) = (|| self.reports(), |page| self.report_of(page));
        report(&watches, pages, &lock, report_of, |report, page| self.call_hook(report, page));
    }

    /// As [`written`](Self::written), for the pages of a bitmap.
    pub(super) fn written_words(&self, enabled: &AtomicU64, source: &Shifted<'_>) {
        let Some(watched) = self.pages.get() else { return };
        let mut rest = source.first..source.first + source.count;
        while let Some(granule) = watched.dirty_granule(&rest) {
            rest.start = granule.end;
            watched.visit(&granule, |word, bits| {
                for page in bits_of(word, bits & source.destination_word(word)) {
                    self.written(enabled, &(page..page + 1));
                }
            });
        }
    }
}

#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;
