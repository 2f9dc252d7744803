//! What marks have set since it was last distributed to the clients.
//!
//! The [`Bitmap`] below is exact and lock-free. Above it, a mark of a page that is marked already
//! is made a matter of three loads, without a locked instruction, as most stores are to pages that
//! were written a moment ago.
//!
//! # When a mark may be left out
//!
//! It is left out if the page's bit is set, and the two levels above it too, so that the next
//! distribution finds it. The bit says nothing about the levels: whoever set it may not have got
//! there yet. So each word of 64 pages has a *stamp*, and distributions are numbered: the
//! *sequence* is odd while one runs, and even otherwise. A mark (**M**), a mark that is left out
//! (**L**) and a distribution (**D**) do, in this order:
//!
//! ```text
//!   M1  g <- sequence        L0  store to the page     D0  sequence += 1
//!   M2  mark in the bitmap   L1  bit set?              D1  take from the bitmap
//!   M3  if even, stamp <- g  L2  s <- stamp            D2  sequence += 1
//!                            L3  sequence = s?         D3  barrier
//!                                                      D4  read the page
//! ```
//!
//! If L3 holds, some M1 read the number s before, and no distribution has begun between M1 and L3:
//! numbers only grow. Nor did one run then, as s is even. Bits are cleared by distributions only,
//! so at L3 the levels above the word are as M2 left them: set. If the bit was set at that time
//! too, the next distribution finds it.
//!
//! If it was not, a distribution took it after L1. Its barrier D3 comes after L1: where it
//! interrupts every thread (`membarrier`), the thread of L passes it after L1, with its store to
//! the page L0 in memory, so that D4 reads it. Where it does not, L has a full fence of its own
//! between L0 and L1, which the fence of D3 pairs with. So the page goes to every client by that
//! distribution, with what L0 stored.
//!
//! The tests check this with loom, whose barrier is one that meets the marking thread at any point,
//! and keep what is wrong: no barrier, no stamp, one number for a distribution instead of two, a
//! stamp taken after the mark, a reset without a number.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::bitmap::atomic::Bitmap;
use crate::bitmap::bits::BITS;
use crate::bitmap::word::Word;
use crate::page::{allocation, index};

/// The marks of a block, for all clients that are on.
pub(super) struct Marks<W: Word = AtomicU64> {
    /// How many distributions have begun, and how many have ended. Other events that change what a
    /// mark has to do count as one that has done both.
    sequence: W,
    /// Reserved by the first client.
    reserved: OnceLock<Reserved<W>>,
}

struct Reserved<W: Word> {
    pages: Bitmap<W>,
    /// For each word of pages, the sequence at which the levels above it were known to be set.
    stamps: W::Array,
}

impl<W: Word> Default for Marks<W> {
    fn default() -> Self {
        Self { sequence: W::new(FIRST), reserved: OnceLock::new() }
    }
}

impl<W: Word> Marks<W> {
    /// Makes room for the marks of `pages` pages, unless that was done.
    pub(super) fn reserve(&self, pages: u64) -> io::Result<()> {
        if self.reserved.get().is_none() {
            let stamps = W::zeroed(allocation(pages.div_ceil(BITS))?)?;
            let reserved = Reserved { pages: Bitmap::new(pages)?, stamps };
            // Another thread's are as good.
            drop(self.reserved.set(reserved));
        }
        Ok(())
    }

    /// The sequence: odd while a distribution runs. While it stays the same even number, what is
    /// marked stays marked.
    #[inline]
    pub(super) fn sequence(&self) -> u64 {
        self.sequence.load_acquire()
    }

    /// Calls `mark`, which marks a page; returns the sequence as long as which stores to the page
    /// need no further mark, or [`NEVER`].
    ///
    /// A store that is followed by a look at the [`sequence`](Self::sequence), and finds the number
    /// that this has returned, is like a mark that is left out: the number was read before the page
    /// was marked (M1), so that at the look the page is still marked, or a distribution has begun
    /// after the look, whose barrier comes later still. What switches a client on, or watches a
    /// page, changes the sequence after that, and passes a barrier before it relies on it.
    pub(super) fn settle(&self, mark: impl FnOnce()) -> u64 {
        let sequence = self.sequence.load_seq_cst(); // M1
        mark(); // M2
        if sequence % 2 == 0 { sequence } else { NEVER } // M3
    }

    /// Whether a mark of `page` may be left out; false if there is no such page.
    #[inline]
    pub(super) fn is_settled(&self, page: u64) -> bool {
        self.is_settled_with(page, || ())
    }

    /// As [`is_settled`](Self::is_settled), calling `between` between two steps, for the model.
    #[inline(always)]
    fn is_settled_with(&self, page: u64, between: impl Fn()) -> bool {
        let Some(Reserved { pages, stamps }) = self.reserved.get() else { return false };
        let Some(stamp) = stamps.get(index(page / BITS)) else { return false };
        let is_set = pages.contains_acquire(page); // L1
        between();
        let stamp = stamp.load_acquire(); // L2
        between();
        is_set && stamp == self.sequence.load_acquire() // L3
    }

    /// Marks `page`, which is among the block's.
    pub(super) fn mark(&self, page: u64) {
        let Some(Reserved { pages, stamps }) = self.reserved.get() else { return };
        let stamp = self.settle(|| pages.mark_word(page / BITS, 1 << (page % BITS)));
        stamps[index(page / BITS)].store_release(stamp);
    }

    /// Marks `pages`, which are among the block's.
    pub(super) fn mark_range(&self, pages: &Range<u64>) {
        if let Some(reserved) = self.reserved.get() {
            reserved.pages.mark_range(pages);
        }
    }

    /// Whether `page`, which is among the block's, is marked.
    pub(super) fn contains(&self, page: u64) -> bool {
        self.reserved.get().is_some_and(|reserved| reserved.pages.contains(page))
    }

    /// The first granule of `pages` that may have a mark.
    pub(super) fn dirty_granule(&self, pages: &Range<u64>) -> Option<Range<u64>> {
        self.reserved.get()?.pages.dirty_granule(pages)
    }

    /// Clears the marks of `pages` and hands each word of them that has any to `sink`. By one
    /// thread at a time.
    pub(super) fn take(&self, pages: &Range<u64>, sink: impl FnMut(u64, u64)) {
        if let Some(reserved) = self.reserved.get() {
            let running = Running::new(&self.sequence); // D0
            reserved.pages.take(pages, sink); // D1
            drop(running);
        }
    }

    /// Makes every store that comes after this be marked anew, without taking any marks: what is
    /// settled is so no longer.
    pub(super) fn unsettle(&self) {
        self.sequence.fetch_add_seq_cst(2);
    }

    /// Drops all marks and frees their memory. As [`Bitmap::reset`], a mark that is under way may
    /// stay. By one thread at a time, and not while another takes marks.
    pub(super) fn reset(&self) {
        if let Some(Reserved { pages, stamps }) = self.reserved.get() {
            let running = Running::new(&self.sequence);
            pages.reset();
            W::reset(stamps);
            drop(running);
        }
    }
}

/// The first number: stamps are zero where there was never a mark.
const FIRST: u64 = 2;

/// A number that the sequence never has: it is odd, and too large.
pub(crate) const NEVER: u64 = u64::MAX;

/// A distribution that runs; it ends even if it panics, so that the sequence is even again.
struct Running<'a, W: Word>(&'a W);

impl<'a, W: Word> Running<'a, W> {
    fn new(sequence: &'a W) -> Self {
        sequence.fetch_add_seq_cst(1);
        Self(sequence)
    }
}

impl<W: Word> Drop for Running<'_, W> {
    fn drop(&mut self) {
        self.0.fetch_add_seq_cst(1); // D2
    }
}

// WebAssembly with WASI has no threads.
#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod litmus_tests;
#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;
