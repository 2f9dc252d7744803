//! The watched pages, and the reports of writes to them that are under way.
//!
//! All of this is locked briefly, never while a hook runs; `watched` argues why that suffices. It
//! is written over [`Word`] so that the models check the code that ships.

use std::ops::{DerefMut, Range};

use crate::bitmap::atomic::Bitmap;
use crate::bitmap::bits::bits_of;
use crate::bitmap::word::Word;
use crate::dirty::client::DirtyClient;

/// The code client's bit in the mask of clients that are on.
const SWITCH: u64 = 1 << DirtyClient::CODE.number();

/// What writers read without the lock: the switch, then the bits.
pub(super) struct Watches<'a, W: Word> {
    /// Has [`SWITCH`] set while a page is watched.
    pub(super) enabled: &'a W,
    pub(super) pages: &'a Bitmap<W>,
}

/// A call of the hook that has not returned.
struct Running {
    number: u64,
    page: u64,
    /// The page was watched again since the call began: the call may have missed code that was read
    /// under the new watch, so the page stays watched.
    watched_again: bool,
    /// The hook itself has written the page after that, and must be called again.
    again: bool,
}

/// The state of one block, under its lock.
#[derive(Default)]
pub(super) struct Reports {
    /// How many pages are watched.
    watched: u64,
    running: Vec<Running>,
    /// How many calls of the hook have begun.
    begun: u64,
}

impl Reports {
    /// Watches `pages`. Calls `fence_writers`, before the caller reads anything, if one of them was
    /// not watched.
    pub(super) fn watch<W: Word>(
        &mut self,
        watches: &Watches<'_, W>,
        pages: &Range<u64>,
        fence_writers: impl FnOnce(),
    ) {
        for running in self.running.iter_mut().filter(|running| pages.contains(&running.page)) {
            running.watched_again = true;
        }
        let mut before = 0;
        watches.pages.visit(pages, |_, bits| before += u64::from(bits.count_ones()));
        let new = pages.end.saturating_sub(pages.start) - before;
        if new == 0 {
            return;
        }
        watches.pages.mark_range(pages);
        self.watched += new;
        if self.watched == new {
            watches.enabled.fetch_or_seq_cst(SWITCH);
        }
        fence_writers();
    }

    /// Stops watching `pages`.
    pub(super) fn unwatch<W: Word>(&mut self, watches: &Watches<'_, W>, pages: &Range<u64>) {
        let mut gone = 0;
        watches.pages.take(pages, |_, bits| gone += u64::from(bits.count_ones()));
        self.count_unwatched(watches, gone);
    }

    /// Stops watching all pages, and frees the bits' memory.
    pub(super) fn unwatch_all<W: Word>(&mut self, watches: &Watches<'_, W>) {
        watches.pages.reset();
        self.count_unwatched(watches, self.watched);
    }

    fn count_unwatched<W: Word>(&mut self, watches: &Watches<'_, W>, gone: u64) {
        self.watched -= gone;
        // After the bits, and so after the hooks: see "Nothing watched" in `watched`.
        if gone != 0 && self.watched == 0 {
            watches.enabled.fetch_and_seq_cst(!SWITCH);
        }
    }

    /// Begins a report of `page`, if it is watched.
    fn begin<W: Word>(&mut self, watches: &Watches<'_, W>, page: u64) -> Option<u64> {
        if !watches.pages.contains(page) {
            return None;
        }
        let number = self.begun;
        self.begun += 1;
        self.running.push(Running { number, page, watched_again: false, again: false });
        Some(number)
    }

    /// Ends a report. If the hook has `returned`, the page is no longer watched, unless it was
    /// watched again meanwhile. Returns whether the hook must be called again.
    fn end<W: Word>(&mut self, watches: &Watches<'_, W>, number: u64, returned: bool) -> bool {
        let Some(at) = self.running.iter().position(|running| running.number == number) else {
            return false;
        };
        let Running { page, watched_again, again, .. } = self.running.swap_remove(at);
        if returned && !watched_again {
            self.unwatch(watches, &(page..page + 1));
        }
        again
    }

    /// Notes that the hook that runs as report `number` has written its own page.
    fn written_by_its_hook(&mut self, number: u64) {
        if let Some(running) = self.running.iter_mut().find(|running| running.number == number) {
            running.again = running.watched_again;
        }
    }

    /// Whether nothing is watched.
    #[cfg(test)]
    #[cfg(not(any(target_family = "wasm", target_arch = "s390x")))] // where models run
    pub(super) fn is_empty(&self) -> bool {
        self.watched == 0
    }

    /// How many reports have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether one of the first `begun` reports has not ended.
    pub(super) fn runs_before(&self, begun: u64) -> bool {
        self.running.iter().any(|running| running.number < begun)
    }
}

/// A report that ends when this is dropped; if the hook panicked, its page stays watched.
struct Ending<'a, W: Word, G: DerefMut<Target = Reports>, L: Fn() -> G> {
    watches: &'a Watches<'a, W>,
    lock: &'a L,
    number: u64,
    ended: bool,
}

impl<W: Word, G: DerefMut<Target = Reports>, L: Fn() -> G> Ending<'_, W, G, L> {
    fn end(mut self) -> bool {
        self.ended = true;
        (self.lock)().end(self.watches, self.number, true)
    }
}

impl<W: Word, G: DerefMut<Target = Reports>, L: Fn() -> G> Drop for Ending<'_, W, G, L> {
    fn drop(&mut self) {
        if !self.ended {
            (self.lock)().end(self.watches, self.number, false);
        }
    }
}

/// A writer's side: calls `call_hook` with the report's number and the page for each of `pages`
/// that is watched, then stops watching it. `report_of` returns the number of the report of a page
/// whose hook this thread is inside of.
///
/// When this returns, for each of `pages` that was watched a call of the hook has returned that
/// began while it was, except for pages whose hook is the caller of this function.
pub(super) fn report<W: Word, G: DerefMut<Target = Reports>>(
    watches: &Watches<'_, W>,
    pages: &Range<u64>,
    lock: &impl Fn() -> G,
    report_of: impl Fn(u64) -> Option<u64>,
    mut call_hook: impl FnMut(u64, u64),
) {
    watches.pages.visit(pages, |word, bits| {
        for page in bits_of(word, bits) {
            if let Some(number) = report_of(page) {
                lock().written_by_its_hook(number);
                continue;
            }
            loop {
                let Some(number) = lock().begin(watches, page) else { break };
                let ending = Ending { watches, lock, number, ended: false };
                call_hook(number, page);
                if !ending.end() {
                    break;
                }
            }
        }
    });
}
