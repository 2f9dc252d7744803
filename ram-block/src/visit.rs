//! Visiting runs of dirty pages, in order, without a snapshot.

use std::ops::{ControlFlow, Range};

use crate::bitmap::{BITS, GRANULE};
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
    /// The run that is put together, or is being visited; empty if there is none.
    pending: Range<u64>,
    /// The run after it, while that is being visited.
    waiting: Range<u64>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (word, bits) in (self.base..).zip(self.words).filter(|(_, bits)| *bits != 0) {
            self.dirty.mark_for(self.client, word, bits);
        }
        for page in self.pending.clone().chain(self.waiting.clone()) {
            self.dirty.mark_for(self.client, page / BITS, 1 << (page % BITS));
        }
    }
}

impl Taken<'_> {
    /// Takes the next run of neighbours within the granule, from word `from` on.
    #[inline(always)]
    fn next_run(&mut self, from: &mut usize) -> Option<Range<u64>> {
        let rest = self.words.get_mut(*from..)?;
        let skipped = rest.iter().position(|word| *word != 0)?;
        *from += skipped;
        let word = &mut rest[skipped];
        let bits = *word;
        let first = bits.trailing_zeros();
        let ones = (!(bits >> first)).trailing_zeros();
        // Adding the lowest bit carries over the run and clears it.
        *word = bits & bits.wrapping_add(1 << first);
        let start = (self.base + *from as u64) * BITS + u64::from(first);
        let mut end = start + u64::from(ones.min(u64::BITS - first));
        if end % BITS == 0 {
            while self.words.get(*from + 1) == Some(&u64::MAX) {
                *from += 1;
                self.words[*from] = 0;
                end += BITS;
            }
        }
        Some(start..end)
    }

    /// Joins `run` to the pending one, or visits that and lets `run` wait.
    #[inline(always)]
    fn push<B>(
        &mut self,
        run: Range<u64>,
        gap: u64,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if self.pending.is_empty() {
            self.pending = run;
        } else if run.start - self.pending.end <= gap {
            self.pending.end = run.end;
        } else {
            self.waiting = run;
            let flow = visit(self.pending.clone());
            self.pending = std::mem::take(&mut self.waiting);
            return flow;
        }
        ControlFlow::Continue(())
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
    /// ram.dirty().enable(client)?;
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
            Taken { dirty: self, client, base: 0, words: [0; WORDS], pending: 0..0, waiting: 0..0 };
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
        if !taken.pending.is_empty() {
            let flow = visit(taken.pending.clone());
            taken.pending = 0..0;
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
        dirty.enable(CLIENT).unwrap();
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
