//! Marks for all clients but one: the one that made the change, and need not hear of it.
//!
//! What puts memory back as it was (a reset, a rewind) writes pages that its own log would report
//! to it the next time. It would have to harvest twice, and with that take what others wrote in
//! between. So its writes are put in the sets of the others at once, as a merge of KVM's log is.
//!
//! The order is that of a merge: the page is stored to first, then its bit is set under the lock of
//! the sets. A client whose harvest takes the bit holds that lock later, and so reads the store.
//! One that is switched on meanwhile either has its set here, or puts it there under the lock after
//! this, and then reads memory that has the store. Whether there is any other client is asked as a
//! mark asks it (`DirtyMemory::interested`).

use crate::dirty::claim::DirtyClaim;
use crate::dirty::client::DirtyClient;

impl DirtyClaim {
    /// Marks the pages that `len` bytes from byte `offset` span, for every client that is on but
    /// this one, and reports them to a code watch. Call it after the write.
    pub(crate) fn mark_for_others(&self, offset: u64, len: u64) {
        let Self { dirty, client, disable_count } = self;
        let clients = dirty.interested();
        let others = clients.without(*client);
        // If the claim has ended, its number may be another's.
        if others.is_empty() && dirty.disable_count(*client) == *disable_count {
            return;
        }
        let touched = dirty.page_size().pages_spanned(offset, len);
        let touched = touched.start..touched.end.min(dirty.room);
        if touched.is_empty() {
            return;
        }
        if !clients.without(DirtyClient::CODE).is_empty() {
            let mut sets = dirty.sets.lock();
            // Changes before the set does, which changes under this lock.
            let is_own =
                |at: usize| at == client.index() && dirty.disable_count(*client) == *disable_count;
            for (_, set) in sets.iter_mut().enumerate().filter(|(at, _)| !is_own(*at)) {
                set.iter_mut().for_each(|set| set.insert(touched.clone()));
            }
        }
        // Last, without a lock: a hook may do anything, and panic.
        if clients.contains(DirtyClient::CODE) {
            dirty.code_written(&touched);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::block::ram_block::RamBlock;
    use crate::page::PageSize;

    const PAGES: u64 = 300;

    fn pages_of(claim: &DirtyClaim) -> Vec<u64> {
        let harvest = claim.snapshot_and_clear(0..PAGES).unwrap();
        let pages = harvest.pages().collect();
        harvest.commit();
        pages
    }

    proptest! {
        #[test]
        fn all_hear_of_it_but_the_one_that_writes(
            first in prop::collection::vec((0..PAGES, 1..3000u64, any::<bool>()), 0..20),
        ) {
            let size = PageSize::new(64).unwrap();
            let block = RamBlock::builder("ram", PAGES * 64).page_size(size).anonymous().unwrap();
            let names = ["reset", "display", "backup"];
            let logs = names.map(|name| block.dirty().claim(name).unwrap());
            let mut expected = [const { Vec::<u64>::new() }; 2];
            for (page, len, by_reset) in first {
                let bytes = vec![1; usize::try_from(len.min((PAGES - page) * 64)).unwrap()];
                let touched: Range<u64> = page..page + (bytes.len() as u64).div_ceil(64);
                expected[1].extend(touched.clone());
                if by_reset {
                    block.write_by(&logs[0], page * 64, &bytes).unwrap();
                } else {
                    block.write(page * 64, &bytes).unwrap();
                    expected[0].extend(touched);
                }
            }
            for pages in &mut expected {
                pages.sort_unstable();
                pages.dedup();
            }
            let [own, others] = expected;
            prop_assert_eq!(pages_of(&logs[0]), own);
            prop_assert_eq!(pages_of(&logs[1]), others.clone());
            prop_assert_eq!(pages_of(&logs[2]), others);
        }
    }

    #[test]
    fn what_was_marked_before_for_the_writer_stays_so() {
        let block = RamBlock::anonymous("ram", 1 << 20).unwrap();
        let logs = ["reset", "display"].map(|name| block.dirty().claim(name).unwrap());
        block.write(0x5000, &[1]).unwrap();
        block.write_by(&logs[0], 0x5000, &[2; 4096]).unwrap();
        assert_eq!(logs[0].snapshot_and_clear(0..256).unwrap().commit().count(), 1);
        assert_eq!(logs[1].snapshot_and_clear(0..256).unwrap().commit().count(), 1);
    }

    #[test]
    fn a_claim_that_has_ended_hides_nothing_from_the_next_of_its_number() {
        let block = RamBlock::anonymous("ram", 1 << 20).unwrap();
        let ended = block.dirty().claim(DirtyClient::VGA).unwrap();
        ended.end();
        let next = block.dirty().claim(DirtyClient::VGA).unwrap();
        block.write_by(&ended, 0x5000, &[2; 4096]).unwrap();
        assert!(next.snapshot_and_clear(0..256).unwrap().commit().is_dirty(5));
    }

    #[test]
    fn a_code_watch_hears_of_it_and_may_use_the_claim() {
        let block = RamBlock::anonymous("ram", 1 << 20).unwrap();
        let claim = Arc::new(block.dirty().claim("reset").unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (in_hook, pages) = (claim.clone(), heard.clone());
        let watch = block
            .dirty()
            .watch_code(move |page| {
                pages.lock().unwrap().push(page);
                in_hook.end();
            })
            .unwrap();
        let _ = watch.watch(3..4).unwrap();
        block.write_by(&claim, 0x2000, &[2; 0x3000]).unwrap();
        assert_eq!(*heard.lock().unwrap(), [3]);
    }

    #[test]
    fn a_claim_of_another_block_marks_for_all() {
        let blocks = ["a", "b"].map(|name| RamBlock::anonymous(name, 1 << 20).unwrap());
        let claims = [0, 1].map(|n: usize| blocks[n].dirty().claim("reset").unwrap());
        blocks[0].write_by(&claims[1], 0x5000, &[1]).unwrap();
        assert!(claims[0].snapshot_and_clear(0..256).unwrap().commit().is_dirty(5));
    }
}
