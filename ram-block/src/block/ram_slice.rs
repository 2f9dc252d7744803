//! A block's memory as vm-memory's volatile slices.
#![allow(unsafe_code)]

use vm_memory::bitmap::{Bitmap, RefSlice};
use vm_memory::{VolatileMemoryError, VolatileSlice};

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::dirty::memory::DirtyMemory;
use crate::page::index;

/// A slice of a block's memory; writes through it mark the block's clients. With the feature
/// `vm-memory`.
pub type RamSlice<'a> = VolatileSlice<'a, RefSlice<'a, DirtyMemory>>;

impl RamBlock {
    /// All of the block as a slice for vm-memory's accessors. With the feature `vm-memory`.
    #[inline]
    pub fn as_slice(&self) -> RamSlice<'_> {
        let bitmap = self.dirty().slice_at(0);
        // SAFETY: the mapping is valid for its length as long as `self` lives, which
        // the slice's lifetime is bound to, and all accesses to it are those of
        // such slices or of a guest.
        unsafe {
            VolatileSlice::with_bitmap(
                self.mapping().start().as_ptr(),
                index(self.len()),
                bitmap,
                None,
            )
        }
    }

    /// `len` bytes from `offset` as a slice for vm-memory's accessors. With the feature
    /// `vm-memory`.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`].
    #[inline]
    pub fn slice(&self, offset: u64, len: u64) -> Result<RamSlice<'_>, RamBlockError> {
        let narrow = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let slice = self.as_slice().subslice(narrow(offset), narrow(len));
        slice.map_err(|_: VolatileMemoryError| self.out_of_bounds(offset, len))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::dirty::client::DirtyClient;

    #[test]
    fn writes_through_vm_memory_mark_and_reads_do_not() {
        let mut blocks = vec![RamBlock::anonymous("a", 1 << 20).unwrap()];
        if cfg!(target_os = "linux") {
            blocks.push(RamBlock::memfd("m", 1 << 20).unwrap());
        }
        for ram in blocks {
            let page = ram.page_size().bytes();
            let claim = |client| ram.dirty().claim(client).unwrap();
            let _logs = [DirtyClient::VGA, DirtyClient::MIGRATION].map(claim);
            let slice = ram.slice(3 * page, 2 * page).unwrap();
            slice.write_obj(0x1122_3344u32, index(page) - 2).unwrap();
            let _: u64 = slice.read_obj(0).unwrap();
            for client in [DirtyClient::VGA, DirtyClient::MIGRATION] {
                let dirty: Vec<_> =
                    (0..ram.pages()).filter(|p| ram.dirty().is_dirty(client, *p)).collect();
                assert_eq!(dirty, [3, 4]);
            }
            assert!(!ram.dirty().is_dirty(DirtyClient::CODE, 3));
        }
    }
}
