//! The bitmap traits of vm-memory, for a block's bitmaps.

use std::ops::Deref;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::dirty::memory::DirtyMemory;
use crate::page::PageSize;

impl<'a> WithBitmapSlice<'a> for DirtyMemory {
    type S = RefSlice<'a, Self>;
}

/// A write through a slice that carries this bitmap marks every client that is on.
impl Bitmap for DirtyMemory {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset as u64, len as u64);
    }

    /// Whether any client that is on has the page of `offset` dirty.
    fn dirty_at(&self, offset: usize) -> bool {
        let page = self.page_size().page_of(offset as u64);
        self.enabled().iter().any(|client| self.is_dirty(client, page))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

/// The dirty bitmaps of one region of vm-memory's own: the `B` of `GuestMemoryMmap<B>`,
/// for machines whose memory is not made of [`RamBlock`](crate::RamBlock)s.
///
/// One bit is a page of the host; every client is off at first.
///
/// ```
/// use ram_block::{DirtyBitmap, DirtyClient};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
///
/// let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)];
/// let memory = GuestMemoryMmap::<DirtyBitmap>::from_ranges(&ranges)?;
/// let region = memory.find_region(GuestAddress(1 << 32)).unwrap().get_mmap();
/// let log = region.bitmap().claim(DirtyClient::MIGRATION)?;
///
/// memory.write_obj(7u32, GuestAddress((1 << 32) + 0x3000))?;
/// assert!(log.snapshot_and_clear(0..region.bitmap().pages())?.commit().is_dirty(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DirtyBitmap(Arc<DirtyMemory>);

impl Deref for DirtyBitmap {
    type Target = Arc<DirtyMemory>;

    fn deref(&self) -> &Arc<DirtyMemory> {
        &self.0
    }
}

impl From<Arc<DirtyMemory>> for DirtyBitmap {
    fn from(dirty: Arc<DirtyMemory>) -> Self {
        Self(dirty)
    }
}

impl Default for DirtyBitmap {
    /// Bitmaps for no pages.
    fn default() -> Self {
        Self::with_len(0)
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = RefSlice<'a, DirtyMemory>;
}

impl Bitmap for DirtyBitmap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, DirtyMemory> {
        self.0.slice_at(offset)
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(len: usize) -> Self {
        let page_size = PageSize::host();
        let pages = (len as u64).div_ceil(page_size.bytes());
        Self(DirtyMemory::new(pages, page_size))
    }
}
