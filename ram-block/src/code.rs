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
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::bitmap::{Bitmap, bits_of};
use crate::bulk::Shifted;
use crate::dirty::{DirtyError, DirtyMemory};

mod reports;

use reports::{Reports, Watches, report};

/// Told the number of a page that was watched and is written.
type Hook = Arc<dyn Fn(u64) + Send + Sync>;

/// The code client's side of a block's [`DirtyMemory`].
#[derive(Default)]
pub(crate) struct Watched {
    /// Reserved when somebody first watches.
    pages: OnceLock<Bitmap>,
    /// Held while the hook is told, unless another hook is the cause.
    turn: Mutex<()>,
    /// Taken for moments only, and last: no other lock is taken within.
    reports: Mutex<Reports>,
    /// A report has ended.
    ended: Condvar,
    /// Taken for moments only. Present as long as there is a [`CodeWatch`].
    hook: Mutex<Option<Hook>>,
    /// How many hooks have begun, and how often pages were no longer watched.
    invalidations: AtomicU64,
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
fn in_a_hook() -> bool {
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
    fn hook(&self) -> MutexGuard<'_, Option<Hook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        // Nothing that can panic runs between two changes.
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Whether this thread is in this block's hook.
    fn is_telling(&self) -> bool {
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

    /// Whether there is a [`CodeWatch`].
    pub(crate) fn exists(&self) -> bool {
        self.hook().is_some()
    }
}

impl DirtyMemory {
    /// What writers of this block look at, if somebody has ever watched it.
    fn watches(&self) -> Option<Watches<'_, AtomicU64>> {
        let pages = self.code().pages.get()?;
        Some(Watches { enabled: self.switches(), pages })
    }

    /// To be called after a write to `pages`, by whoever marks them.
    #[inline]
    pub(crate) fn code_written(&self, pages: &Range<u64>) {
        if self.code().pages.get().is_some_and(|watched| watched.any(pages)) {
            self.report_code(pages);
        }
    }

    #[cold]
    fn report_code(&self, pages: &Range<u64>) {
        let (code, Some(watches)) = (self.code(), self.watches()) else { return };
        let _wake = Wake(code);
        let _turn = code.turn();
        let (lock, telling) = (|| code.reports(), |page| code.telling(page));
        report(&watches, pages, &lock, telling, |report, page| code.tell(report, page));
    }

    /// As [`code_written`](Self::code_written), for the pages of a bitmap.
    pub(crate) fn code_written_words(&self, source: &Shifted<'_>) {
        let Some(watched) = self.code().pages.get() else { return };
        let mut rest = source.first..source.first + source.count;
        while let Some(granule) = watched.dirty_granule(&rest) {
            rest.start = granule.end;
            watched.visit(&granule, |word, bits| {
                for page in bits_of(word, bits & source.destination_word(word)) {
                    self.code_written(&(page..page + 1));
                }
            });
        }
    }
}

/// What a translator read its code under; see [`CodeWatch::is_current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watching(u64);

/// A translator's watch over the pages of one block that it has translated.
///
/// Made by [`DirtyMemory::watch_code`]; nothing is watched any more when it is dropped, and no
/// hook runs, unless it is dropped in a hook.
///
/// Whatever marks a page as written reports it: writes through vm-memory,
/// [`DirtyMemory::mark`], and merges of what others logged. A guest that writes under
/// KVM reports when its log is merged.
pub struct CodeWatch {
    dirty: Arc<DirtyMemory>,
}

impl DirtyMemory {
    /// Lets a translator watch the pages that it translates: `invalidate` is called with
    /// the number of each watched page that is written, once, before the writer's mark
    /// returns. The page is not watched any more then.
    ///
    /// The hook runs on the writer's thread, one at a time for a block: it must not wait for
    /// another thread that writes watched pages, so hold no lock that it takes while you do. An
    /// accelerator that merges its log calls it with its own locks held: it must not sync or
    /// change a map that an accelerator follows. It may write to its block and to others that
    /// are watched, and drop watches. To watch pages of its block from within is an error. What
    /// the hook writes to the page that it is told of is not told again, unless the page was
    /// watched anew meanwhile. If hooks of several blocks write each other's blocks, one that is
    /// caused by another hook does not wait for one that runs on another thread: a hook may then
    /// run on two threads at a time, and be told of a page twice.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use std::collections::HashMap;
    /// use ram_block::RamBlock;
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let cache = Arc::new(Mutex::new(HashMap::new()));
    /// let watch = ram.dirty().watch_code({
    ///     let cache = cache.clone();
    ///     move |page| drop(cache.lock().unwrap().remove(&page))
    /// })?;
    ///
    /// let watching = watch.watch(5..6)?; // before the code is read
    /// let mut code = [0; 16];
    /// ram.read(0x5000, &mut code)?;
    /// cache.lock().unwrap().insert(5u64, code); // "translated"
    /// if !watch.is_current(watching) {
    ///     cache.lock().unwrap().remove(&5); // written meanwhile: translate again
    /// }
    ///
    /// ram.write(0x5004, b"new code")?;
    /// assert!(cache.lock().unwrap().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DirtyError::Watched`] if somebody watches this block already, and
    /// [`DirtyError::NoMemory`].
    pub fn watch_code(
        self: &Arc<Self>,
        invalidate: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<CodeWatch, DirtyError> {
        let mut hook = self.code().hook();
        if hook.is_some() {
            return Err(DirtyError::Watched);
        }
        crate::dirty::reserve(&self.code().pages, self.room())?;
        *hook = Some(Arc::new(invalidate));
        Ok(CodeWatch { dirty: self.clone() })
    }
}

impl CodeWatch {
    /// Watches `pages` from now on: to be called before their code is read.
    ///
    /// Each write that this thread does not read afterwards is reported. Costs a system
    /// call of some microseconds (`membarrier`) unless all of them are watched already.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, and
    /// [`DirtyError::InHook`] from within the hook, whose page would not stay watched.
    pub fn watch(&self, pages: Range<u64>) -> Result<Watching, DirtyError> {
        let code = self.dirty.code();
        if code.is_telling() {
            return Err(DirtyError::InHook);
        }
        let check = || self.dirty.check(&pages, self.dirty.pages());
        check()?;
        let mut reports = code.reports();
        if let Some(watches) = self.dirty.watches() {
            // Under the lock: who finds a page watched may rely on the barrier.
            reports.watch(&watches, &pages, || self.dirty.order_writers());
            // A resize changes the length, then reports the watched pages that go. If it has
            // not seen these, its change of the length is seen here. They stay watched, which
            // costs a report of too much and loses none of another translator's.
            check()?;
        }
        // A report that begins now is seen by `is_current`; one that has begun began with a
        // store that this thread reads.
        Ok(Watching(code.invalidations.load(Ordering::Acquire)))
    }

    /// Whether no page of the block was reported since `watching`.
    ///
    /// To be asked after a translation can be found by the hook: a report that came
    /// before found nothing to invalidate. False says only that some page was written.
    pub fn is_current(&self, watching: Watching) -> bool {
        self.dirty.code().invalidations.load(Ordering::Acquire) == watching.0
    }

    /// Whether a write to `page` will be reported.
    pub fn is_watched(&self, page: u64) -> bool {
        page < self.dirty.pages() && self.dirty.code().contains(page)
    }

    /// Stops watching `pages`: their translations are gone, and those that were read under
    /// an earlier [`watch`](Self::watch) are not [current](Self::is_current) any more. Writes
    /// under way may still be reported. Pages outside the block are ignored.
    pub fn unwatch(&self, pages: Range<u64>) {
        let code = self.dirty.code();
        let pages = pages.start..pages.end.min(self.dirty.pages());
        if let Some(watches) = self.dirty.watches().filter(|_| !pages.is_empty()) {
            let mut reports = code.reports();
            code.invalidations.fetch_add(1, Ordering::AcqRel);
            reports.unwatch(&watches, &pages);
        }
    }
}

impl Drop for CodeWatch {
    fn drop(&mut self) {
        let code = self.dirty.code();
        let mut reports = code.reports();
        if let Some(watches) = self.dirty.watches() {
            reports.unwatch_all(&watches);
        }
        let begun = reports.begun();
        // A hook that waited for others could wait for one that waits for it.
        if !in_a_hook() {
            while reports.runs_before(begun) {
                reports = code.ended.wait(reports).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(reports);
        // Last of these: the next watch finds no page watched.
        let hook = code.hook().take();
        // Without a lock: what it owns may use the block.
        drop(hook);
    }
}

impl fmt::Debug for CodeWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeWatch").field("dirty", &self.dirty).finish()
    }
}

#[cfg(test)]
mod circle_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
