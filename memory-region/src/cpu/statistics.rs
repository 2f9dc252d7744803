//! What a TLB has done.

/// What a [`Tlb`](crate::Tlb) has done since it was made, but for hits, which nothing counts: all
/// other accesses were such. Counted where it costs nothing beside what is counted.
///
/// ```
/// # use memory_region::{MemoryMap, Tlb};
/// # use ram_block::{DirtyClient, RamBlock};
/// # let map = MemoryMap::new();
/// # let root = map.transaction(|map| map.ram("ram", RamBlock::anonymous("ram", 1 << 20)?))?;
/// # let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root)?);
/// # let log = map.claim_log(root, DirtyClient::VGA)?;
/// (0..100).try_for_each(|n| tlb.store_le(8 * n, n))?;
/// let statistics = tlb.statistics();
/// assert_eq!((statistics.refills, statistics.by_view, statistics.marked_stores), (1, 0, 1));
/// # drop(log);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlbStatistics {
    /// Look-ups of pages that were in no entry, or had moved.
    pub refills: u64,
    /// Loads, stores and fetches that went through the view: to devices, at parts of pages, not
    /// aligned, to holes.
    pub by_view: u64,
    /// Stores to pages of the TLB that had to be marked: the first after a harvest, after a client
    /// was switched on, or after a refill.
    pub marked_stores: u64,
    /// How often commits were followed: several at once count as one.
    pub commits: u64,
}
