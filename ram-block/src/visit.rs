//! Visiting runs of dirty pages, in order, without a snapshot.

use std::ops::{ControlFlow, Range};

use crate::bitmap::BITS;
use crate::bulk::GRANULE;
use crate::client::DirtyClient;
use crate::dirty::{DirtyError, DirtyMemory};
use crate::page::index;

/// Words of a granule: what is taken at once.
const WORDS: usize = 64 * 64;

/// Bits that were taken and not yet visited; given back when this is dropped, by an
/// early end or by a panic of the visitor.
struct Taken<'a> {
    dirty: &'a DirtyMemory,
    client: DirtyClient,
    /// The granule's first word.
    base: u64,
    words: [u64; WORDS],
    /// The run that is put together, or is being visited.
    pending: Option<Range<u64>>,
    /// The run after it, while that is being visited.
    waiting: Option<Range<u64>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (word, bits) in (self.base..).zip(self.words).filter(|(_, bits)| *bits != 0) {
            self.dirty.mark_for(self.client, word, bits);
        }
        for page in self.pending.take().into_iter().chain(self.waiting.take()).flatten() {
            self.dirty.mark_for(self.client, page / BITS, 1 << (page % BITS));
        }
    }
}

impl Taken<'_> {
    /// Takes the next run of neighbours within the granule, from word `from` on.
    #[inline]
    fn next_run(&mut self, from: &mut usize) -> Option<Range<u64>> {
        while self.words.get(*from)? == &0 {
            *from += 1;
        }
        let word = &mut self.words[*from];
        let first = word.trailing_zeros();
        let ones = (!(*word >> first)).trailing_zeros().min(u64::BITS - first);
        *word &= !((u64::MAX >> (u64::BITS - ones)) << first);
        let start = (self.base + *from as u64) * BITS + u64::from(first);
        let mut end = start + u64::from(ones);
        if first + ones == u64::BITS {
            while self.words.get(*from + 1) == Some(&u64::MAX) {
                *from += 1;
                self.words[*from] = 0;
                end += BITS;
            }
        }
        Some(start..end)
    }

    /// Joins `run` to the pending one, or visits that and lets `run` wait.
    #[inline]
    fn push<B>(
        &mut self,
        run: Range<u64>,
        gap: u64,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        match &mut self.pending {
            Some(pending) if run.start - pending.end <= gap => {
                pending.end = run.end;
                ControlFlow::Continue(())
            }
            Some(pending) => {
                let visited = pending.clone();
                self.waiting = Some(run);
                let flow = visit(visited);
                self.pending = self.waiting.take();
                flow
            }
            None => {
                self.pending = Some(run);
                ControlFlow::Continue(())
            }
        }
    }
}

impl DirtyMemory {
    /// Takes the bits of `pages` from `client`'s bitmap, run by run: calls `visit` for
    /// each run of dirty pages, in ascending order. Runs with at most `gap` clean pages
    /// between them are one, clean pages included.
    ///
    /// A run's bits are gone when `visit` has returned for it. When it breaks, or panics
    /// (then also the run it was called for), what it has not seen stays in the bitmap.
    /// Allocates nothing, and costs what is dirty: 32 KiB of the stack, and a look at
    /// them, for each 262,144 pages that are not clean.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use ram_block::{DirtyClient, RamBlock};
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let (page, client) = (ram.page_size().bytes(), DirtyClient::MIGRATION);
    /// ram.dirty().enable(client);
    /// for number in [3, 4, 6, 20] {
    ///     ram.dirty().mark(number * page, 1);
    /// }
    /// let mut runs = Vec::new();
    /// let _ = ram.dirty().visit_runs(client, 0..ram.pages(), 1, |run| {
    ///     runs.push(run);
    ///     ControlFlow::<()>::Continue(())
    /// })?;
    /// assert_eq!(runs, [3..7, 20..21]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, and
    /// [`DirtyError::ClientOff`].
    pub fn visit_runs<B>(
        &self,
        client: DirtyClient,
        pages: Range<u64>,
        gap: u64,
        mut visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, DirtyError> {
        self.check_on(client, &pages)?;
        let mut taken =
            Taken { dirty: self, client, base: 0, words: [0; WORDS], pending: None, waiting: None };
        let mut rest = pages;
        while let Some(granule) = self.dirty_granule(client, &rest) {
            rest.start = granule.end;
            taken.base = granule.start / GRANULE * (GRANULE / BITS);
            let base = taken.base;
            self.take_words(client, &granule, |word, bits| {
                taken.words[index(word - base)] |= bits;
            });
            let mut from = 0;
            while let Some(run) = taken.next_run(&mut from) {
                if let ControlFlow::Break(value) = taken.push(run, gap, &mut visit) {
                    return Ok(ControlFlow::Break(value));
                }
            }
        }
        if let Some(last) = taken.pending.clone() {
            let flow = visit(last);
            taken.pending = None;
            return Ok(flow);
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::page::PageSize;
    use proptest::prelude::*;

    const CLIENT: DirtyClient = DirtyClient::MIGRATION;
    const PAGES: u64 = 2 * GRANULE + 1000;

    fn dirty(marks: &[(u64, u64, bool)]) -> (Arc<DirtyMemory>, BTreeSet<u64>) {
        let dirty = DirtyMemory::new(PAGES, PageSize::new(4096).unwrap());
        dirty.enable(CLIENT);
        let mut pages = BTreeSet::new();
        for &(start, len, merge) in marks {
            let len = len.min(PAGES - start);
            if merge {
                let words = vec![u64::MAX; index(len.div_ceil(64))];
                dirty.merge(start, len, &words).unwrap();
            } else {
                dirty.mark(start * 4096, len * 4096);
            }
            pages.extend(start..start + len);
        }
        (dirty, pages)
    }

    fn left(dirty: &DirtyMemory) -> BTreeSet<u64> {
        let mut words = vec![0u64; index(PAGES.div_ceil(64))];
        dirty.move_into(CLIENT, 0..PAGES, &mut words).unwrap();
        (0..PAGES).filter(|page| words[index(page / 64)] >> (page % 64) & 1 != 0).collect()
    }

    fn marks() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        let start = prop_oneof![0..600u64, GRANULE - 300..GRANULE + 300, 0..PAGES - 1];
        let len = prop_oneof![4 => 1..5u64, 1 => 1..300u64];
        prop::collection::vec((start, len, any::<bool>()), 0..60)
    }

    proptest! {
        /// Runs against the set of pages, whole or stopped early, by a break or a panic.
        #[test]
        fn runs_are_visited_in_order_and_the_rest_stays(
            marks in marks(),
            (a, b) in (0..=PAGES, 0..=PAGES),
            gap in 0..5u64,
            stop in prop::option::of(0..12usize),
            panics in any::<bool>(),
        ) {
            let (dirty, pages) = dirty(&marks);
            let range = a.min(b)..a.max(b);
            let mut expected: Vec<Range<u64>> = Vec::new();
            for page in pages.range(range.clone()) {
                match expected.last_mut() {
                    Some(run) if page - run.end <= gap => run.end = page + 1,
                    _ => expected.push(*page..page + 1),
                }
            }
            let mut seen: Vec<Range<u64>> = Vec::new();
            let result = catch_unwind(AssertUnwindSafe(|| {
                dirty.visit_runs(CLIENT, range.clone(), gap, |run| {
                    if panics && stop == Some(seen.len()) {
                        std::panic::resume_unwind(Box::new("stopped"));
                    }
                    seen.push(run);
                    if stop == Some(seen.len() - 1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            }));
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            if let Ok(Ok(ControlFlow::Continue(()))) = result {
                prop_assert_eq!(seen.len(), expected.len());
            }
            let unseen: BTreeSet<u64> =
                pages.into_iter().filter(|page| !seen.iter().any(|run| run.contains(page))).collect();
            let left = left(&dirty);
            prop_assert!(left.is_superset(&unseen), "pages are lost");
            // A run that was given back may bring the clean pages in its gaps along.
            let extra = left.difference(&unseen).count() as u64;
            prop_assert!(extra == 0 || panics && gap > 0, "{} pages too many", extra);
        }
    }
}
