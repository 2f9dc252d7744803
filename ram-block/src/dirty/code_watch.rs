//! A translator's watch over the pages that it has translated.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::bitmap::atomic::Bitmap;
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::switch::no_memory;
use crate::dirty::watched::in_a_hook;

/// Returned by [`CodeWatch::watch`]: by this a translator checks the code that it has read since;
/// see [`CodeWatch::is_current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchToken(u64);

/// A translator's watch over the pages of one block that it has translated.
///
/// Made by [`DirtyMemory::watch_code`]. Dropping it stops all watching, and waits for calls of the
/// hook to return, unless it is dropped in a hook.
///
/// Each mark of a page as written reports it: writes through vm-memory, [`DirtyMemory::mark`], and
/// merges of logs of others. A write of a guest under KVM is reported when KVM's log is merged.
pub struct CodeWatch {
    dirty: Arc<DirtyMemory>,
}

impl DirtyMemory {
    /// Lets a translator watch the pages that it translates: the hook `invalidate` is called with
    /// the number of each watched page that is written, once, before the writer's mark returns. The
    /// page is no longer watched then.
    ///
    /// The hook runs on the writer's thread, one call at a time for a block. It must not wait for
    /// another thread that writes watched pages: so hold no lock that the hook takes while you
    /// write. An accelerator that merges its log calls the hook with its own locks held: the hook
    /// must not sync or change a map that an accelerator follows. It may write to its block and to
    /// others that are watched, and drop watches. Within it, watching pages of its block is an
    /// error. A write of the hook to the page that it was called for is not reported again, unless
    /// the page was watched again meanwhile. If hooks of several blocks write each other's blocks,
    /// a hook that is caused by another hook does not wait for one that runs on another thread: a
    /// hook may then run on two threads at a time, and be called for a page twice.
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
    /// [`DirtyError::Watched`] if this block has a watch already, and [`DirtyError::NoMemory`].
    pub fn watch_code(
        self: &Arc<Self>,
        invalidate: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<CodeWatch, DirtyError> {
        let mut hook = self.code().hook();
        if hook.is_some() {
            return Err(DirtyError::Watched);
        }
        let pages = &self.code().pages;
        if pages.get().is_none() {
            let room = self.room();
            let new = Bitmap::new(room).map_err(|error| no_memory(room, &error))?;
            pages.get_or_init(|| new);
        }
        *hook = Some(Arc::new(invalidate));
        Ok(CodeWatch { dirty: self.clone() })
    }
}

impl CodeWatch {
    /// Watches `pages` from now on; call it before their code is read.
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
        if code.is_in_hook() {
            return Err(DirtyError::CalledFromHook);
        }
        let check = || self.dirty.check(&pages, self.dirty.pages());
        check()?;
        let mut reports = code.reports();
        if let Some(watches) = self.dirty.code().watches(self.dirty.switches()) {
            // Under the lock: a thread that finds a page watched may rely on the barrier.
            reports.watch(&watches, &pages, || {
                // After the bits: what was settled before was so without this watch.
                self.dirty.unsettle();
                self.dirty.fence_writers();
            });
            // A resize changes the length, then reports the watched pages that it removes. If it
            // has not seen these, its change of the length is seen here. They stay watched, which
            // costs one report too many and loses none of another translator's.
            check()?;
        }
        // `is_current` sees a report that begins from now on; one that has begun before began with
        // a store that this thread reads.
        Ok(WatchToken(code.invalidations.load(Ordering::Acquire)))
    }

    /// Whether no page of the block was reported or unwatched since `watching` was returned.
    ///
    /// Call it once the hook can find the translation: a report before that found nothing to
    /// invalidate. False says only that some page was written or unwatched.
    pub fn is_current(&self, watching: WatchToken) -> bool {
        self.dirty.code().invalidations.load(Ordering::Acquire) == watching.0
    }

    /// Whether a write to `page` will be reported.
    pub fn is_watched(&self, page: u64) -> bool {
        page < self.dirty.pages() && self.dirty.code().contains(page)
    }

    /// Stops watching `pages`, whose translations were dropped; code that was read under an earlier
    /// [`watch`](Self::watch) is no longer [current](Self::is_current). Writes under way may still
    /// be reported. Pages outside the block are ignored.
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
        // Inside of a hook this does not wait: it could wait for a hook that waits for this one.
        if !in_a_hook() {
            while reports.runs_before(begun) {
                reports = code.ended.wait(reports).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(reports);
        // Last of these, so that the next watch begins with no page watched.
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

// WebAssembly with WASI has no threads.
#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod circle_tests;
#[cfg(test)]
mod tests;
