//! A translator's watch over the pages that it has translated.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::dirty::enable::reserve;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::watched::in_a_hook;

/// What a translator read its code under; see [`CodeWatch::is_current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchToken(u64);

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
        reserve(&self.code().pages, self.room())?;
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
    /// [`DirtyError::CalledFromHook`] from within the hook, whose page would not stay watched.
    pub fn watch(&self, pages: Range<u64>) -> Result<WatchToken, DirtyError> {
        let code = self.dirty.code();
        if code.is_telling() {
            return Err(DirtyError::CalledFromHook);
        }
        let check = || self.dirty.check(&pages, self.dirty.pages());
        check()?;
        let mut reports = code.reports();
        if let Some(watches) = self.dirty.code().watches(self.dirty.switches()) {
            // Under the lock: who finds a page watched may rely on the barrier.
            reports.watch(&watches, &pages, || self.dirty.fence_writers());
            // A resize changes the length, then reports the watched pages that go. If it has
            // not seen these, its change of the length is seen here. They stay watched, which
            // costs a report of too much and loses none of another translator's.
            check()?;
        }
        // A report that begins now is seen by `is_current`; one that has begun began with a
        // store that this thread reads.
        Ok(WatchToken(code.invalidations.load(Ordering::Acquire)))
    }

    /// Whether no page of the block was reported since `watching`.
    ///
    /// To be asked after a translation can be found by the hook: a report that came
    /// before found nothing to invalidate. False says only that some page was written.
    pub fn is_current(&self, watching: WatchToken) -> bool {
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
        if let Some(watches) =
            self.dirty.code().watches(self.dirty.switches()).filter(|_| !pages.is_empty())
        {
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
        if let Some(watches) = self.dirty.code().watches(self.dirty.switches()) {
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
mod tests;
