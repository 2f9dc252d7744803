//! The RAM of a flat view as vm-memory's `GuestMemoryBackend`: what its crates (loaders, vhost)
//! write there is marked.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ram_block::vm_memory::bitmap::{Bitmap, RefSlice};
use ram_block::vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress,
};
use ram_block::{DirtyMemory, RamBlock, RamSlice};

use crate::view::section::Section;

/// A piece of guest RAM at its guest address: a part of a block, with its bitmap.
pub struct GuestRamRegion {
    start: u64,
    len: u64,
    block: Arc<RamBlock>,
    offset: u64,
    /// A descriptor of its own for the block's file; made when it is first asked for.
    file: OnceLock<Option<FileOffset>>,
}

impl GuestRamRegion {
    fn new(section: &Section, block: &Arc<RamBlock>) -> Option<Self> {
        let len = match section.last {
            // vm-memory's iterators go on at 0 after the last byte of the space.
            u64::MAX => {
                (section.last - section.start).checked_sub(block.page_size().bytes() - 1)?
            }
            last => last - section.start + 1,
        };
        if len == 0 {
            return None;
        }
        let (block, file) = (block.clone(), OnceLock::new());
        Some(Self { start: section.start, len, block, offset: section.offset, file })
    }

    /// The block that it is a part of.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Where in the block it starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl fmt::Debug for GuestRamRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, len, offset, .. } = self;
        write!(f, "{len:#x} bytes at {start:#x}: {} @{offset:#x}", self.block.id())
    }
}

impl GuestMemoryRegion for GuestRamRegion {
    type B = DirtyMemory;

    fn len(&self) -> GuestUsize {
        self.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    /// Bit 0 of it is the range's first page only where that is the block's.
    fn bitmap(&self) -> RefSlice<'_, DirtyMemory> {
        self.block.dirty().slice_at(usize::try_from(self.offset).unwrap_or(usize::MAX))
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let inside = self.check_address(address).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let offset = usize::try_from(self.offset + inside.0);
        let offset = offset.map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.block.host_address().wrapping_add(offset))
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        let open = || {
            let file = self.block.file()?.try_clone();
            let file = file.inspect_err(|error| log::warn!("{self:?}: {error}")).ok()?;
            Some(FileOffset::new(file, self.block.file_offset() + self.offset))
        };
        self.file.get_or_init(open).as_ref()
    }

    fn get_slice(
        &self,
        address: MemoryRegionAddress,
        count: usize,
    ) -> Result<RamSlice<'_>, GuestMemoryError> {
        let end = address.0.checked_add(count as u64).filter(|end| *end <= self.len);
        end.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let slice = self.block.slice(self.offset + address.0, count as u64);
        slice.map_err(|_| GuestMemoryError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for GuestRamRegion {}

/// The RAM of a view that can be written, in ascending order; see
/// [`FlatView::ram`](crate::FlatView::ram).
///
/// It leaves out the last page of the 64-bit space: vm-memory's accesses to a
/// `GuestMemoryBackend` would go on at address 0 behind it. The view has it, and does not.
#[derive(Clone, Debug, Default)]
pub struct GuestRam {
    ranges: Arc<[GuestRamRegion]>,
}

impl GuestRam {
    pub(crate) fn new(sections: &[Section]) -> Self {
        let writable = sections.iter().filter(|section| !section.readonly);
        let ranges = writable.filter_map(|section| GuestRamRegion::new(section, section.ram()?));
        Self { ranges: ranges.collect() }
    }

    /// Whether it has descriptors of files.
    pub(crate) fn has_files(&self) -> bool {
        self.ranges.iter().any(|range| matches!(range.file.get(), Some(Some(_))))
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = GuestRamRegion;

    fn num_regions(&self) -> usize {
        self.ranges.len()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&GuestRamRegion> {
        let at = self.ranges.partition_point(|range| range.start <= address.0);
        let range = &self.ranges[at.checked_sub(1)?];
        (address.0 - range.start < range.len).then_some(range)
    }

    fn iter(&self) -> impl Iterator<Item = &GuestRamRegion> {
        self.ranges.iter()
    }
}
