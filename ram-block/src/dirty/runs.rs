//! Visiting runs of dirty pages, in order, without a snapshot.

use std::ops::{ControlFlow, Range};

use crate::bitmap::bits::{BITS, GRANULE, bits_of, mask_within, words_of};
use crate::dirty::claim::DirtyClaim;
use crate::dirty::error::DirtyError;
use crate::page::index;

/// Words of a granule, which is taken at once.
const WORDS: usize = 64 * 64;

/// Bits that were taken and not visited yet. Dropping this gives them back, after an early end or a
/// panic of the visitor.
struct Taken<'a> {
    claim: &'a DirtyClaim,
    /// The granule's first word.
    base: u64,
    /// A bit for each of `words` that is not zero.
    summary: [u64; 64],
    words: [u64; WORDS],
    /// The last run found, which was not visited: the next may extend it. Empty before the first.
    pending: Range<u64>,
    /// All pages before this one were visited, except those of the pending run.
    from: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let DirtyClaim { dirty, client, disable_count } = self.claim;
        let Some(_harvesting) = dirty.lock_harvest_of(*client, *disable_count) else { return };
        let unseen = self.from..u64::MAX;
        let (base, words) = (self.base, &self.words);
        let found = (0..).zip(self.summary).flat_map(|(n, summary)| bits_of(n, summary));
        let taken = found.map(|at| {
            let word = base + at;
            (word, words[index(at)] & mask_within(word, &unseen))
        });
        let pending = words_of(&self.pending).map(|word| (word, mask_within(word, &self.pending)));
        dirty.sets.insert_words(*client, taken.chain(pending));
    }
}

impl Taken<'_> {
    /// Takes the bits of a granule; all pages before it were visited or are pending.
    fn take(&mut self, granule: &Range<u64>) {
        self.base = granule.start / GRANULE * (GRANULE / BITS);
        let Self { claim, base, summary, words, .. } = self;
        let DirtyClaim { dirty, client, .. } = claim;
        dirty.take_granules(*client, granule, |set, granule| {
            set.move_into(granule, *base, words, |chunk, found| {
                summary[index(chunk - *base / BITS)] = found;
            });
        });
    }

    /// Visits the pending run, and makes `run` the pending one.
    #[inline(always)]
    fn visit<B>(
        &mut self,
        run: Range<u64>,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if self.pending.is_empty() {
            self.pending = run;
            return ControlFlow::Continue(());
        }
        // Until the visitor returns, a drop gives both back: `run` is still among the words.
        let flow = visit(self.pending.clone());
        self.from = self.pending.end;
        self.pending = run;
        flow
    }

    /// Extends the pending run by `run`, or visits the pending run.
    #[inline(always)]
    fn push<B>(
        &mut self,
        run: Range<u64>,
        gap: u64,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if run.start - self.pending.end <= gap && !self.pending.is_empty() {
            self.pending.end = run.end;
            ControlFlow::Continue(())
        } else {
            self.visit(run, visit)
        }
    }

    /// If all words of summary word `n` are all ones, pushes them as one run.
    #[inline]
    fn push_full_words<B>(
        &mut self,
        n: usize,
        gap: u64,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let words = &self.words[n * 64..(n + 1) * 64];
        if words.iter().fold(u64::MAX, |all, word| all & word) != u64::MAX {
            return ControlFlow::Continue(());
        }
        let page = (self.base + n as u64 * 64) * BITS;
        self.push(page..page + 64 * BITS, gap, visit)?;
        self.words[n * 64..(n + 1) * 64].fill(0);
        self.summary[n] = 0;
        ControlFlow::Continue(())
    }

    /// Visits the runs of the granule's words but the last, which stays pending.
    fn visit_words<B>(
        &mut self,
        gap: u64,
        visit: &mut impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for n in 0..self.summary.len() {
            if self.summary[n] == u64::MAX {
                self.push_full_words(n, gap, visit)?;
            }
            while self.summary[n] != 0 {
                let at = n * 64 + self.summary[n].trailing_zeros() as usize;
                let bits = self.words[at];
                let page = (self.base + at as u64) * BITS;
                // Runs begin where a bit is set and the one below is not, and end where it is the
                // other way round. The bit below the lowest is that of the pending run.
                let open = u64::from(self.pending.end == page);
                let below = bits << 1 | open;
                let (mut starts, mut ends) = (bits & !below, !bits & below);
                if open != 0 {
                    self.pending.end = page + u64::from(ends.trailing_zeros());
                    ends &= ends.wrapping_sub(1);
                }
                while ends != 0 {
                    let run = page + u64::from(starts.trailing_zeros())
                        ..page + u64::from(ends.trailing_zeros());
                    starts &= starts - 1;
                    ends &= ends - 1;
                    self.push(run, gap, visit)?;
                }
                if starts != 0 {
                    let start = page + u64::from(starts.trailing_zeros());
                    self.push(start..page + BITS, gap, visit)?;
                }
                self.words[at] = 0;
                self.summary[n] &= self.summary[n] - 1;
            }
        }
        ControlFlow::Continue(())
    }
}

impl DirtyClaim {
    /// Takes the client's bits of `pages`, run by run: calls `visit` for each run of dirty pages,
    /// in ascending order. Runs with at most `gap` clean pages between them are one, clean pages
    /// included.
    ///
    /// A run's bits are dropped when `visit` has returned for it. If `visit` breaks or panics, the
    /// runs that it has not seen stay in the bitmap, and after a panic also the run that it was
    /// called for. Allocates nothing, and costs as much as is dirty: for each 262,144 pages that
    /// are not all clean, it scans 32 KiB of the stack.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use ram_block::{DirtyClient, RamBlock};
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let page = ram.page_size().bytes();
    /// let log = ram.dirty().claim(DirtyClient::MIGRATION)?;
    /// for number in [3, 4, 6, 20] {
    ///     ram.dirty().mark(number * page, 1);
    /// }
    /// let mut runs = Vec::new();
    /// let _ = log.visit_runs(0..ram.pages(), 1, |run| {
    ///     runs.push(run);
    ///     ControlFlow::<()>::Continue(())
    /// })?;
    /// assert_eq!(runs, [3..7, 20..21]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] if the block has no such pages, and [`DirtyError::ClientOff`] if
    /// the claim has [ended](Self::end).
    pub fn visit_runs<B>(
        &self,
        pages: Range<u64>,
        gap: u64,
        mut visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, DirtyError> {
        drop(self.lock_harvest(&pages)?);
        let mut taken = Taken {
            claim: self,
            base: 0,
            summary: [0; 64],
            words: [0; WORDS],
            pending: 0..0,
            from: 0,
        };
        let mut rest = pages;
        while let Some(granule) = self.dirty.dirty_granule(self.client, &rest) {
            rest.start = granule.end;
            // Not while the visitor is called, which may end the claim.
            let harvesting = self.lock_harvest(&(0..0))?;
            taken.take(&granule);
            drop(harvesting);
            if let ControlFlow::Break(value) = taken.visit_words(gap, &mut visit) {
                return Ok(ControlFlow::Break(value));
            }
        }
        Ok(taken.visit(0..0, &mut visit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::dirty::client::DirtyClient;
    use crate::dirty::memory::DirtyMemory;
    use crate::page::PageSize;
    use proptest::prelude::*;

    const PAGES: u64 = 2 * GRANULE + 1000;

    fn dirty(marks: &[(u64, u64, bool)]) -> (DirtyClaim, BTreeSet<u64>) {
        let dirty = DirtyMemory::new(PAGES, PageSize::new(4096).unwrap());
        let log = dirty.claim(DirtyClient::MIGRATION).unwrap();
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
        (log, pages)
    }

    fn left(log: &DirtyClaim) -> BTreeSet<u64> {
        let mut words = vec![0u64; index(PAGES.div_ceil(64))];
        log.move_into(0..PAGES, &mut words).unwrap();
        (0..PAGES).filter(|page| words[index(page / 64)] >> (page % 64) & 1 != 0).collect()
    }

    fn marks() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        let start = prop_oneof![0..600u64, GRANULE - 300..GRANULE + 300, 0..PAGES - 1];
        let len = prop_oneof![4 => 1..5u64, 1 => 1..300u64];
        prop::collection::vec((start, len, any::<bool>()), 0..60)
    }

    /// Neither a break nor a panic of the visitor gives bits to the next claim of the number.
    #[cfg(panic = "unwind")]
    #[test]
    fn a_visit_that_outlives_its_claim_gives_nothing_back() {
        for panics in [false, true] {
            let (log, _) = dirty(&[(3, 1, false), (5, 1, false), (7, 1, false)]);
            let mut next = None;
            let visited = catch_unwind(AssertUnwindSafe(|| {
                log.visit_runs(0..PAGES, 0, |run| {
                    assert_eq!(run, 3..4);
                    log.end();
                    next = Some(log.dirty().claim(log.client()).unwrap());
                    if panics {
                        std::panic::resume_unwind(Box::new("stopped"));
                    }
                    ControlFlow::Break(())
                })
            }));
            assert_eq!(visited.is_err(), panics);
            let next = next.unwrap();
            assert_eq!(left(&next), BTreeSet::new());
            // The next one's own bits are its own.
            next.dirty().mark(5 * 4096, 1);
            assert_eq!(left(&next), BTreeSet::from([5]));
        }
    }

    proptest! {
        /// Runs against the set of pages, whole or stopped early, by a break or a panic.
        #[test]
        fn runs_are_visited_in_order_and_the_rest_stays(
            marks in marks(),
            (a, b) in (0..=PAGES, 0..=PAGES),
            gap in 0..5u64,
            stop in prop::option::of(0..12usize),
            panics in any::<bool>().prop_map(|panics| panics && cfg!(panic = "unwind")),
        ) {
            let (log, pages) = dirty(&marks);
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
                log.visit_runs(range.clone(), gap, |run| {
                    if panics && stop == Some(seen.len()) {
                        std::panic::resume_unwind(Box::new("stopped"));
                    }
                    seen.push(run);
                    if stop == Some(seen.len() - 1) { ControlFlow::Break(()) }
                        else { ControlFlow::Continue(()) }
                })
            }));
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            if let Ok(Ok(ControlFlow::Continue(()))) = result {
                prop_assert_eq!(seen.len(), expected.len());
            }
            let unseen: BTreeSet<u64> =
                pages.into_iter().filter(|page| !seen.iter().any(|run| run.contains(page)))
                    .collect();
            let left = left(&log);
            prop_assert!(left.is_superset(&unseen), "pages are lost");
            // A run that was given back may bring the clean pages in its gaps along.
            let extra = left.difference(&unseen).count() as u64;
            prop_assert!(extra == 0 || panics && gap > 0, "{} pages too many", extra);
        }
    }
}
