//! How marks get to the clients.
//!
//! A mark sets one bit for all clients. Before a client's bits are taken, the marks among them are
//! *distributed*: taken once, and put in the set of every client that is on. So a mark costs the
//! same with one client as with eight, and a harvest costs what it costs to merge the marks.
//!
//! # Why no mark is lost
//!
//! A distribution takes marks and puts them in the sets under the lock of the sets, so a client
//! whose harvest finds a mark gone finds it in its set: it takes from there after the other
//! distribution has released the lock. A mark that has returned is found by the next distribution,
//! or by one that was running ([`Marks`](crate::dirty::marks)).
//!
//! A harvest passes a barrier after it has taken bits, and before it hands them out: a mark may
//! have been left out because of them ([`Marks`](crate::dirty::marks)), whose store to the page may
//! be still on its way. It also takes bits that another harvest has distributed, whose barrier is
//! still to come. So the number of the last distribution that found something is kept, and that of
//! the last one that a barrier has followed: whoever takes bits compares the two *afterwards*, and
//! passes a barrier of its own if one is missing. When nothing was marked there is none: a refresh
//! of a picture that stands still makes no system call.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::bitmap::bits::GRANULE;
use crate::bitmap::page_set::PageSet;
use crate::dirty::client::DirtyClient;
use crate::dirty::memory::DirtyMemory;

impl DirtyMemory {
    /// Moves what is marked among `pages` to the set of every client that is on.
    pub(super) fn distribute(&self, pages: &Range<u64>) {
        let marks = &self.marks;
        let mut rest = pages.clone();
        while let Some(granule) = marks.dirty_granule(&rest) {
            rest.start = granule.end;
            let mut sets = self.sets.lock();
            let mut found = false;
            marks.take(&granule, |word, bits| {
                found = true;
                for set in sets.iter_mut().flatten() {
                    set.insert_word(word, bits);
                }
            });
            if found {
                self.sets.found.store(marks.sequence(), Ordering::Release);
            }
        }
    }

    /// Passes a barrier, unless one has followed every distribution of which this thread may have
    /// taken bits.
    fn fence_distributions(&self) {
        // The bits were taken under the lock under which this number was stored before.
        let found = self.sets.found.load(Ordering::Acquire);
        if self.sets.fenced.load(Ordering::Acquire) < found {
            self.fence_writers();
            self.sets.fenced.fetch_max(found, Ordering::AcqRel);
        }
    }

    /// Calls `take` for every granule of `pages` that may have a dirty page of `client`, with the
    /// lock held for one granule at a time. What it takes may be handed out when this returns.
    pub(super) fn take_granules(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
        take: impl FnMut(&mut PageSet, &Range<u64>),
    ) {
        self.distribute(pages);
        self.sets.each_granule(client, pages, take);
        self.fence_distributions();
    }

    /// The first granule of `pages` that may have a dirty page of `client`, cut to `pages`.
    pub(super) fn dirty_granule(
        &self,
        client: DirtyClient,
        pages: &Range<u64>,
    ) -> Option<Range<u64>> {
        let is_marked = self.marks.dirty_granule(pages);
        // The set need not be searched past what is marked.
        let before = pages.start..is_marked.as_ref().map_or(pages.end, |granule| granule.end);
        let set =
            self.sets.lock()[client.index()].as_ref().and_then(|set| set.dirty_granule(&before));
        let first = is_marked.into_iter().chain(set).map(|granule| granule.start).min()?;
        Some(first..((first / GRANULE + 1) * GRANULE).min(pages.end))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::dirty::claim::DirtyClaim;
    use crate::dirty::client_sets::ClientSets;
    use crate::page::PageSize;

    /// A harvest, of any kind.
    type Harvest = fn(&DirtyClaim);

    #[test]
    fn a_harvest_that_finds_marks_passes_a_barrier_and_a_clean_one_does_not() {
        let kinds: [Harvest; 4] = [
            |log| drop(log.snapshot_and_clear(0..1000).unwrap().commit()),
            |log| assert!(log.move_into(0..1000, &mut [0; 16]).is_ok()),
            |log| assert!(log.move_to(0..1000, &mut PageSet::new(1000).unwrap()).is_ok()),
            |log| {
                let all = |_| ControlFlow::<()>::Continue(());
                assert!(log.visit_runs(0..1000, 0, all).unwrap().is_continue());
            },
        ];
        let dirty = DirtyMemory::new(1000, PageSize::new(4096).unwrap());
        let logs = ["first", "second"].map(|name| dirty.claim(name).unwrap());
        let count = || {
            let ClientSets { found, fenced, .. } = &dirty.sets;
            [found, fenced].map(|count| count.load(Ordering::Relaxed))
        };
        for harvest in kinds {
            let [before, _] = count();
            dirty.mark(5 << 12, 1);
            harvest(&logs[0]);
            let [found, fenced] = count();
            assert!(found > before && fenced == found, "{before} {found} {fenced}");
            // The second gets what the first has distributed, which a barrier has followed.
            harvest(&logs[1]);
            harvest(&logs[0]);
            assert_eq!(count(), [found; 2]);
            // Merged pages are nobody's stores.
            dirty.merge(7, 1, &[1]).unwrap();
            logs.iter().for_each(harvest);
            assert_eq!(count(), [found; 2]);
        }
        // Distributed by another harvest, which has not come to its barrier.
        dirty.mark(9 << 12, 1);
        dirty.distribute(&(0..1000));
        let [found, fenced] = count();
        assert!(fenced < found);
        kinds[0](&logs[1]);
        assert_eq!(count(), [found; 2]);
    }
}
