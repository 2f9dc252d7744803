//! Harvests whose barrier is refused, which was not so when the block was made.

use crate::bitmap::bits::GRANULE;
use crate::dirty::marks::NEVER;
use crate::dirty::memory::DirtyMemory;
use crate::page::PageSize;
use crate::sys::linux::membarrier::refused_tests::where_it_is_refused;

/// A hart stores through an entry of its TLB, without a fence, as long as the sequence is the
/// number that the entry has. Harvests that have no barrier rely on a fence of each writer.
#[test]
fn no_entry_stays_that_has_no_fence() {
    let dirty = DirtyMemory::new(2 * GRANULE, PageSize::new(4096).unwrap());
    // Switched on by a barrier that is passed.
    let log = dirty.claim("log").unwrap();
    let harvest = |pages| {
        let harvest = log.snapshot_and_clear(pages).unwrap().commit();
        harvest.pages().collect::<Vec<_>>()
    };
    where_it_is_refused(|| {
        // Distributed by another harvest, which has not come to its barrier: the one below passes
        // one, and takes no mark, which would change the sequence as well.
        dirty.mark(0, 1);
        dirty.distribute(&(0..GRANULE));
        let elsewhere = GRANULE * 4096;
        let settled = dirty.settle(elsewhere, 1);
        assert_eq!(settled, dirty.sequence());
        assert_eq!(harvest(0..GRANULE), [0]);
        assert_ne!(settled, dirty.sequence(), "stores through the entry go on");
        assert_eq!(dirty.settle(elsewhere, 1), NEVER);
        assert_eq!(harvest(0..2 * GRANULE), [GRANULE]);
    });
}
