//! vm-memory's view of a block's bitmaps.

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::client::DirtyClient;
use crate::dirty::DirtyMemory;

impl<'a> WithBitmapSlice<'a> for DirtyMemory {
    type S = RefSlice<'a, Self>;
}

/// A write through a slice that carries this bitmap marks every client that is on.
///
/// With an `Arc`, as the bitmap of vm-memory's own regions:
///
/// ```
/// use ram_block::vm_memory::bitmap::ArcSlice;
/// use ram_block::{DirtyMemory, PageSize};
///
/// let dirty = DirtyMemory::new(4096, PageSize::host());
/// let bitmap = ArcSlice::new(dirty.clone(), 0);
/// // let region = MmapRegionBuilder::new_with_bitmap(size, bitmap).build()?;
/// # let _ = bitmap;
/// ```
impl Bitmap for DirtyMemory {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset as u64, len as u64);
    }

    /// Whether any client that is on has the page of `offset` dirty.
    fn dirty_at(&self, offset: usize) -> bool {
        let page = self.page_size().page_of(offset as u64);
        DirtyClient::all().any(|client| self.is_dirty(client, page))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}
