//! What names a region.

use std::sync::atomic::{AtomicU64, Ordering};

/// A region of one [`MemoryMap`](crate::MemoryMap). No other region of the process, of
/// any map, ever has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub(crate) u64);

impl RegionId {
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
