//! The code client: pages with translations, and who is told when they are written.
//!
//! The bitmap has the inverse meaning of the others: a bit is set while a page is
//! *watched*, which is what QEMU calls not dirty for code. A write to any other page
//! costs one load more than without a translator.
//!
//! # Why no stale translation is executed
//!
//! The translator sets the page's bit and then reads the page; a writer stores to the
//! page and then reads the bit. That is store buffering again: `watch` makes every
//! writer pass a barrier between the two (`DirtyMemory::order_writers`), so that
//! either the translator reads what was stored, or the writer finds the bit.
//!
//! A writer that finds the bit takes the lock, looks again, tells the hook, and clears
//! the bit *after that*. So a writer that finds the bit clear knows that the hook has
//! returned, even when another writer met the page first; and of several that find it
//! set, one tells the hook and the others wait. Watching takes the same lock, so that no
//! bit is set between a hook and the clear that follows it.
//!
//! All levels above a page are clear only when the page is, for the same reason: they
//! are cleared after the hooks, under the lock. That is what makes it right to look from
//! the top down for a range.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::bitmap::{Bitmap, bits_of};
use crate::bulk::Shifted;
use crate::client::DirtyClient;
use crate::dirty::{DirtyError, DirtyMemory};
use crate::word::Word;

/// Told the number of a page that was watched and is written.
type Hook = Arc<dyn Fn(u64) + Send + Sync>;

/// The code client's side of a block's [`DirtyMemory`].
///
/// No other lock of the block is held by who takes one of these.
#[derive(Default)]
pub(crate) struct Watched {
    /// Reserved when somebody first watches.
    pages: OnceLock<Bitmap>,
    /// Held while pages come to be watched, and while the hook is told.
    turn: Mutex<()>,
    /// Taken for moments only. Present from the time at which no page is watched until that
    /// is so again.
    hook: Mutex<Option<Hook>>,
    /// How many hooks have begun, and how often pages were no longer watched.
    invalidations: AtomicU64,
}

thread_local! {
    /// The [`Watched`], by its address, whose hook runs on this thread: it is its turn.
    static REPORTING: Cell<usize> = const { Cell::new(0) };
}

/// A turn of this thread to tell the hook.
struct Report<'a> {
    before: usize,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        REPORTING.set(self.before);
    }
}

/// A writer's side: tells `invalidate` of each of `pages` that is watched, once among
/// all writers, and stops watching it. When this returns, some hook has returned for
/// each of them.
fn written<W: Word, G>(
    watched: &Bitmap<W>,
    pages: &Range<u64>,
    lock: impl FnOnce() -> G,
    mut invalidate: impl FnMut(&mut G, u64),
) {
    if !watched.any(pages) {
        return;
    }
    let mut guard = lock();
    watched.visit(pages, |word, bits| {
        bits_of(word, bits).for_each(|page| invalidate(&mut guard, page));
    });
    watched.take(pages, |_, _| ());
}

/// The translator's side, under the lock: watches `pages`, with `order_writers` before
/// anything is read if one of them was not watched.
fn watch<W: Word>(watched: &Bitmap<W>, pages: &Range<u64>, order_writers: impl FnOnce()) {
    if !watched.contains_all(pages) {
        watched.mark_range(pages);
        order_writers();
    }
}

impl Watched {
    fn hook(&self) -> MutexGuard<'_, Option<Hook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_reporting(&self) -> bool {
        REPORTING.get() == std::ptr::from_ref(self) as usize
    }

    /// Takes the turn; `None` if it is this thread's already, which is in the hook.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // A hook that panics leaves its page watched: the next write tells it again.
        (!self.is_reporting()).then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// To be called after a write to `pages`, by whoever marks them.
    #[inline]
    pub(crate) fn written(&self, pages: &Range<u64>) {
        if let Some(watched) = self.pages.get().filter(|watched| watched.any(pages)) {
            self.report(watched, pages);
        }
    }

    #[cold]
    fn report(&self, watched: &Bitmap, pages: &Range<u64>) {
        if self.is_reporting() {
            // The hook writes to its own block. It is its turn, so nobody sees the bits go
            // first, and that makes it come to an end.
            let mut found = Vec::new();
            watched.take(pages, |word, bits| found.push((word, bits)));
            let pages = found.into_iter().flat_map(|(word, bits)| bits_of(word, bits));
            return pages.for_each(|page| self.tell(page));
        }
        let turn = || {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            Report { before: REPORTING.replace(std::ptr::from_ref(self) as usize), _turn }
        };
        written(watched, pages, turn, |_, page| self.tell(page));
    }

    /// As [`written`](Self::written), for the pages of a bitmap.
    pub(crate) fn written_words(&self, source: &Shifted<'_>) {
        let Some(watched) = self.pages.get() else { return };
        let mut rest = source.first..source.first + source.count;
        while let Some(granule) = watched.dirty_granule(&rest) {
            rest.start = granule.end;
            watched.visit(&granule, |word, bits| {
                for page in bits_of(word, bits & source.destination_word(word)) {
                    self.written(&(page..page + 1));
                }
            });
        }
    }

    fn tell(&self, page: u64) {
        self.invalidations.fetch_add(1, Ordering::AcqRel);
        let hook = self.hook().clone();
        if let Some(hook) = hook {
            hook(page);
        }
    }

    /// Whether a write to `page` would be told.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.get().is_some_and(|watched| watched.contains(page))
    }
}

/// What a translator read its code under; see [`CodeWatch::is_current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watching(u64);

/// A translator's watch over the pages of one block that it has translated.
///
/// Made by [`DirtyMemory::watch_code`]; nothing is watched any more when it is dropped.
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
    /// The hook runs on the writer's thread, one at a time for a block, while no page comes
    /// to be watched: it must not wait for another thread that watches pages or writes
    /// watched ones, so hold no lock that it takes while you do. It may write to the block
    /// itself (a page may be reported twice then), and drop the watch; to watch pages from
    /// within is an error.
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
        self.switch_on(DirtyClient::CODE);
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
        let Some(_turn) = code.turn() else { return Err(DirtyError::InHook) };
        // Now, as a resize reports the pages that go after it has changed the length.
        self.dirty.check(&pages, self.dirty.pages())?;
        let seen = Watching(code.invalidations.load(Ordering::Acquire));
        if let Some(watched) = code.pages.get() {
            // Under the lock: who finds a page watched may rely on the barrier.
            watch(watched, &pages, || self.dirty.order_writers());
        }
        Ok(seen)
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
        let _turn = code.turn();
        let pages = pages.start..pages.end.min(self.dirty.pages());
        if let Some(watched) = code.pages.get().filter(|_| !pages.is_empty()) {
            code.invalidations.fetch_add(1, Ordering::AcqRel);
            watched.take(&pages, |_, _| ());
        }
    }
}

impl Drop for CodeWatch {
    fn drop(&mut self) {
        let code = self.dirty.code();
        let turn = code.turn();
        self.dirty.stop_watching();
        if let Some(watched) = code.pages.get() {
            watched.reset();
        }
        // Last of these: the next watch finds no page watched.
        let hook = code.hook().take();
        // Without a lock: what it owns may use the block.
        drop(turn);
        drop(hook);
    }
}

impl fmt::Debug for CodeWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeWatch").field("dirty", &self.dirty).finish()
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
