//! The code client: pages with translations, and who is told when they are written.
//!
//! The bitmap has the inverse meaning of the others: a bit is set while a page is
//! *watched*, which is what QEMU calls not dirty for code. While no page of a block is watched,
//! the client is off and a write costs what it costs without a translator; while one is, a write
//! to any other page costs one load more.
//!
//! # Why no stale translation is executed
//!
//! The translator sets the page's bit and then reads the page; a writer stores to the
//! page and then reads the bit. That is store buffering again: `watch` makes every
//! writer pass a barrier between the two (`DirtyMemory::order_writers`), so that
//! either the translator reads what was stored, or the writer finds the bit.
//!
//! A writer that finds the bit tells the hook and clears the bit *after that*. So **a writer
//! that finds the bit clear knows that a hook has returned** which was called while the bit
//! was set, even when another writer met the page first. Bits are set and cleared under a lock
//! that is held for moments ([`Reports`]), in which each call of a hook that has not returned
//! is noted. If its page is watched anew meanwhile, the call does not clear the bit: the hook
//! may have looked for translations before the new one could be found, so the next writer has
//! to tell it again.
//!
//! # Nothing watched
//!
//! Writers look at the bits only if the client is switched on in the mask of clients, which
//! they load in any case. The switch is one more level above the bits: `watch` sets it after
//! the first bit and before the barrier, and whoever clears the last bit clears it after that,
//! both under the lock. So a writer that finds it clear knows the same as one that finds all
//! bits clear.
//!
//! All levels above a page are clear only when the page is, for the same reason: they
//! are cleared after the hooks, under the lock. That is what makes it right to look from
//! the top down for a range.
//!
//! # Why no two hooks wait for each other
//!
//! Of several writers that find a bit set, one tells the hook and the others wait: they take a
//! *turn* of the block, and look again. A hook may write to other blocks, whose hooks may write
//! to others, and back to this one, while another thread goes the same way from another block.
//! If a thread that is in a hook waited for a turn, that could be a circle. So it does not:
//!
//! - A thread that is in no hook waits for the turn. It has none that others wait for.
//! - A thread that is in a hook takes the turn if that is free, and goes on without it
//!   otherwise: it tells the hook itself, beside the thread that has the turn. No step above
//!   relies on the turn, so the promise stands; only "one at a time" and "once" do not.
//! - A thread that writes the page that it is telling the hook of does not tell it again
//!   within: no other turn of that kind ends. If the page was watched anew, the hook is told
//!   once more after it has returned. Here alone a write returns before its hook does, the hook
//!   being what made the write.
//!
//! Waiting is for turns and for the lock, which is held for moments and while no hook runs. So
//! every chain of hooks ends, however long it is and however many threads run along it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::bitmap::atomic::Bitmap;
use crate::bitmap::bits::bits_of;
use crate::bitmap::shifted::Shifted;
use crate::dirty::reports::{Reports, Watches, report};

/// Told the number of a page that was watched and is written.
pub(super) type Hook = Arc<dyn Fn(u64) + Send + Sync>;

/// The code client's side of a block's `DirtyMemory`.
#[derive(Default)]
pub(crate) struct Watched {
    /// Reserved when somebody first watches.
    pub(super) pages: OnceLock<Bitmap>,
    /// Held while the hook is told, unless another hook is the cause.
    turn: Mutex<()>,
    /// Taken for moments only, and last: no other lock is taken within.
    reports: Mutex<Reports>,
    /// A report has ended.
    pub(super) ended: Condvar,
    /// Taken for moments only. Present as long as there is a `CodeWatch`.
    hook: Mutex<Option<Hook>>,
    /// How many hooks have begun, and how often pages were no longer watched.
    pub(super) invalidations: AtomicU64,
}

/// A hook that runs on this thread.
struct Telling {
    /// The [`Watched`] whose hook it is, by its address.
    watched: usize,
    page: u64,
    report: u64,
}

thread_local! {
    /// The innermost last.
    static TELLING: RefCell<Vec<Telling>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread is in a hook of any block.
pub(super) fn in_a_hook() -> bool {
    // A thread whose locals are gone may be in one: it waits for nobody.
    telling(|all| !all.is_empty()).unwrap_or(true)
}

/// Looks at the hooks that run on this thread; `None` as it ends, with its locals gone.
fn telling<T>(look: impl FnOnce(&mut Vec<Telling>) -> T) -> Option<T> {
    TELLING.try_with(|all| look(&mut all.borrow_mut())).ok()
}

/// Says on this thread that a hook runs, until it is dropped.
struct Told;

impl Drop for Told {
    fn drop(&mut self) {
        telling(Vec::pop);
    }
}

/// Wakes those who wait for reports to end.
struct Wake<'a>(&'a Watched);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        // With the lock: whoever has just looked waits by now.
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

    /// Whether this thread is in this block's hook.
    pub(super) fn is_telling(&self) -> bool {
        let this = |telling: &Telling| telling.watched == self.address();
        telling(|all| all.iter().any(this)).unwrap_or(false)
    }

    /// The report of `page` that this thread is in.
    fn telling(&self, page: u64) -> Option<u64> {
        let this = |it: &&Telling| it.watched == self.address() && it.page == page;
        telling(|all| all.iter().find(this).map(|it| it.report)).flatten()
    }

    /// The turn to tell the hook; in a hook only if nobody has it.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // A hook that panics leaves its page watched: the next write tells it again.
        if !in_a_hook() {
            return Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        }
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn tell(&self, report: u64, page: u64) {
        self.invalidations.fetch_add(1, Ordering::AcqRel);
        let hook = self.hook().clone();
        if let Some(hook) = hook {
            let it = Telling { watched: self.address(), page, report };
            telling(|all| all.push(it));
            let told = Told;
            hook(page);
            drop(told);
        }
    }

    /// Whether a write to `page` would be told.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.get().is_some_and(|watched| watched.contains(page))
    }

    /// Whether there is a `CodeWatch`.
    pub(crate) fn exists(&self) -> bool {
        self.hook().is_some()
    }

    /// What writers of the block look at, if somebody has ever watched it; `enabled` is the mask
    /// of clients that are on.
    pub(super) fn watches<'a>(&'a self, enabled: &'a AtomicU64) -> Option<Watches<'a, AtomicU64>> {
        Some(Watches { enabled, pages: self.pages.get()? })
    }

    /// To be called after a write to `pages`, by whoever marks them.
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
        let _turn = self.turn();
        let (lock, telling) = (|| self.reports(), |page| self.telling(page));
        report(&watches, pages, &lock, telling, |report, page| self.tell(report, page));
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
mod model_tests;
