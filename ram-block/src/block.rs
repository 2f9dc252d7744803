//! A piece of guest RAM.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::bitmap::{Bitmap, RefSlice};
use vm_memory::{VolatileMemoryError, VolatileSlice};

use crate::backing::Mapping;
use crate::dirty::DirtyMemory;
use crate::page::PageSize;

/// The longest id, in bytes: QEMU's migration stream gives it one length byte.
pub const MAX_ID_LEN: usize = 255;

/// A block that cannot be had, or an access outside of one.
#[derive(Debug, Error)]
pub enum RamBlockError {
    /// The id is empty or too long for a migration stream.
    #[error("A block's id has 1 to {MAX_ID_LEN} bytes, {len} were given")]
    Id {
        /// Length of the given id, in bytes.
        len: usize,
    },
    /// The length is zero or not a whole number of pages.
    #[error("A block's length is a non-zero multiple of {page} bytes, {len} were asked for")]
    Length {
        /// The length asked for, in bytes.
        len: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// The operating system gave no memory.
    #[error("Mapping {len} bytes for block \"{id}\" failed")]
    Map {
        /// The block's id.
        id: String,
        /// The length asked for, in bytes.
        len: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// An access reaches past the end of the block.
    #[error("{len} bytes at offset {offset:#x} reach outside block \"{id}\" of {size:#x} bytes")]
    OutOfBounds {
        /// The block's id.
        id: String,
        /// Where the access starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The block's length, in bytes.
        size: u64,
    },
}

/// A slice of a block's memory; writes through it mark the block's clients.
pub type RamSlice<'a> = VolatileSlice<'a, RefSlice<'a, DirtyMemory>>;

/// A piece of guest RAM: host memory and its dirty bitmaps.
///
/// The memory is zero and takes no host memory until it is touched. It stays
/// mapped at one place as long as the block lives. Guests and threads may access
/// it at the same time: all accesses here are volatile copies that tolerate that.
#[derive(Debug)]
pub struct RamBlock {
    id: String,
    mapping: Mapping,
    dirty: Arc<DirtyMemory>,
}

impl RamBlock {
    /// `len` bytes of private memory.
    ///
    /// `id` names the block in a migration stream; `len` is a non-zero multiple of
    /// the host's page size.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`] or [`RamBlockError::Map`].
    pub fn anonymous(id: &str, len: u64) -> Result<Arc<Self>, RamBlockError> {
        Self::with(id, len, Mapping::anonymous)
    }

    /// `len` bytes in a memory file, which another process can map through
    /// [`file`](Self::file).
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn memfd(id: &str, len: u64) -> Result<Arc<Self>, RamBlockError> {
        Self::with(id, len, Mapping::memfd)
    }

    fn with(
        id: &str,
        len: u64,
        map: impl FnOnce(usize) -> io::Result<Mapping>,
    ) -> Result<Arc<Self>, RamBlockError> {
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(RamBlockError::Id { len: id.len() });
        }
        let page_size = PageSize::host();
        if len == 0 || !page_size.is_aligned(len) {
            return Err(RamBlockError::Length { len, page: page_size.bytes() });
        }
        let mapping = map(crate::page::index(len)).map_err(|source| RamBlockError::Map {
            id: id.to_owned(),
            len,
            source,
        })?;
        let dirty = DirtyMemory::new(page_size.count(len), page_size);
        Ok(Arc::new(Self { id: id.to_owned(), mapping, dirty }))
    }

    /// The name in a migration stream.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The length in bytes, a multiple of the page size.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The length in pages.
    pub fn pages(&self) -> u64 {
        self.dirty.pages()
    }

    /// The page size of the block's bitmaps: the host's.
    pub fn page_size(&self) -> PageSize {
        self.dirty.page_size()
    }

    /// The dirty bitmaps.
    pub fn dirty(&self) -> &Arc<DirtyMemory> {
        &self.dirty
    }

    /// The memory file, if there is one. Writes through the descriptor or another
    /// mapping of it mark nothing.
    pub fn file(&self) -> Option<&File> {
        self.mapping.file()
    }

    /// The bytes from `offset` on that a memory file does not have: they read as zeros,
    /// and reading them would allocate memory. `None` if the byte at `offset` is there,
    /// lies outside the block, or the block has no file.
    ///
    /// Somebody who writes at the same time may fill the hole before this returns.
    pub fn hole_at(&self, offset: u64) -> Option<Range<u64>> {
        let hole = offset..self.mapping.next_data(offset).min(self.len());
        Some(hole).filter(|hole| !hole.is_empty())
    }

    /// The host address of the block's first byte, page-aligned; for those who hand
    /// it to the kernel. What is written through it is not marked.
    pub fn host_address(&self) -> *mut u8 {
        self.mapping.start().as_ptr()
    }

    /// All of the block as a slice for vm-memory's accessors.
    pub fn as_slice(&self) -> RamSlice<'_> {
        let bitmap = self.dirty.slice_at(0);
        // SAFETY: the mapping is valid for its length as long as `self` lives, which
        // the slice's lifetime is bound to, and everybody who accesses it does so
        // through such slices or from a guest.
        unsafe {
            VolatileSlice::with_bitmap(
                self.mapping.start().as_ptr(),
                self.mapping.len(),
                bitmap,
                None,
            )
        }
    }

    /// `len` bytes from `offset` as a slice for vm-memory's accessors.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<RamSlice<'_>, RamBlockError> {
        let narrow = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        self.as_slice().subslice(narrow(offset), narrow(len)).map_err(|_: VolatileMemoryError| {
            RamBlockError::OutOfBounds { id: self.id.clone(), offset, len, size: self.len() }
        })
    }

    /// Copies `buf.len()` bytes at `offset` out of the block.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is copied then.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), RamBlockError> {
        self.slice(offset, buf.len() as u64)?.copy_to(buf);
        Ok(())
    }

    /// Copies `data` into the block at `offset` and marks its pages.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is copied then.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), RamBlockError> {
        self.slice(offset, data.len() as u64)?.copy_from(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DirtyClient;
    use vm_memory::Bytes;

    #[test]
    fn bad_ids_and_lengths_are_refused_by_name() {
        let page = PageSize::host().bytes();
        for len in [0, 1, page - 1, page + 1] {
            let refused = RamBlock::anonymous("ram", len).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!(
                    "A block's length is a non-zero multiple of {page} bytes, {len} were asked for"
                )
            );
        }
        for id in ["", &"x".repeat(256)] {
            assert!(matches!(RamBlock::anonymous(id, page), Err(RamBlockError::Id { .. })));
        }
        let refused = RamBlock::anonymous("huge", (1 << 62) - page).unwrap_err();
        assert!(matches!(refused, RamBlockError::Map { .. }), "{refused}");
    }

    #[test]
    fn accesses_outside_are_refused_with_the_place() {
        let page = PageSize::host().bytes();
        let ram = RamBlock::anonymous("ram", page).unwrap();
        for (offset, len) in [(page, 1), (page - 1, 2), (u64::MAX, 2)] {
            let refused = ram.write(offset, &vec![0; len]).unwrap_err();
            assert!(matches!(
                refused,
                RamBlockError::OutOfBounds { offset: o, len: l, size, .. }
                    if o == offset && l == len as u64 && size == page
            ));
        }
    }

    #[test]
    fn writes_through_vm_memory_mark_and_reads_do_not() {
        for ram in
            [RamBlock::anonymous("a", 1 << 20).unwrap(), RamBlock::memfd("m", 1 << 20).unwrap()]
        {
            let page = ram.page_size().bytes();
            ram.dirty().enable(DirtyClient::VGA);
            ram.dirty().enable(DirtyClient::CODE);
            let slice = ram.slice(3 * page, 2 * page).unwrap();
            slice.write_obj(0x1122_3344u32, crate::page::index(page) - 2).unwrap();
            let _: u64 = slice.read_obj(0).unwrap();
            for client in [DirtyClient::VGA, DirtyClient::CODE] {
                let dirty: Vec<_> =
                    (0..ram.pages()).filter(|p| ram.dirty().is_dirty(client, *p)).collect();
                assert_eq!(dirty, [3, 4]);
            }
            assert!(!ram.dirty().is_dirty(DirtyClient::MIGRATION, 3));
        }
    }

    #[test]
    fn holes_of_a_memory_file_are_found_without_filling_them() {
        let ram = RamBlock::memfd("holes", 1 << 20).unwrap();
        let page = ram.page_size().bytes();
        assert_eq!(ram.hole_at(0), Some(0..1 << 20));
        ram.write(3 * page, &[1]).unwrap();
        assert_eq!(ram.hole_at(5), Some(5..3 * page));
        assert_eq!(ram.hole_at(3 * page), None);
        assert_eq!(ram.hole_at(4 * page), Some(4 * page..1 << 20));
        assert_eq!(ram.hole_at(1 << 20), None);
        assert_eq!(ram.hole_at(u64::MAX), None);
        assert_eq!(RamBlock::anonymous("none", 1 << 20).unwrap().hole_at(0), None);
    }

    /// Clean memory and clean bitmaps are addresses only.
    #[test]
    fn a_block_of_16_tib_with_all_clients_costs_what_is_dirty() {
        use std::ops::ControlFlow;
        let ram = RamBlock::anonymous("huge", 16 << 40).unwrap();
        DirtyClient::all().for_each(|client| ram.dirty().enable(client));
        let (page, last) = (ram.page_size().bytes(), ram.pages() - 1);
        ram.write(last * page, b"at the end").unwrap();
        ram.dirty().merge(last / 2, 2, &[0b11]).unwrap();
        ram.dirty().mark(0, 1);
        for client in DirtyClient::all() {
            let mut runs = Vec::new();
            let _ = ram
                .dirty()
                .visit_runs(client, 0..ram.pages(), 0, |run| {
                    runs.push(run);
                    ControlFlow::<()>::Continue(())
                })
                .unwrap();
            assert_eq!(runs, [0..1, last / 2..last / 2 + 2, last..last + 1]);
        }
    }

    #[test]
    fn a_memory_file_is_shared() {
        use std::os::unix::fs::FileExt;
        let ram = RamBlock::memfd("shared", 1 << 20).unwrap();
        ram.write(5000, b"seen by both").unwrap();
        let mut seen = [0; 12];
        ram.file().unwrap().read_exact_at(&mut seen, 5000).unwrap();
        assert_eq!(&seen, b"seen by both");
    }
}
