//! vm-memory's view of an address space: what its crates (loaders, virtqueues, vhost)
//! read and write is the RAM of the flat view, and what they write is marked.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ram_block::vm_memory::bitmap::{Bitmap, RefSlice};
use ram_block::vm_memory::guest_memory::GuestMemorySliceIterator;
use ram_block::vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress, Permissions,
    VolatileSlice,
};
use ram_block::{DirtyMemory, RamBlock, RamSlice};

use crate::address_space::AddressSpace;
use crate::flat_view::FlatView;
use crate::section::Section;

/// A piece of guest RAM at its guest address: a part of a block, with its bitmap.
pub struct RamRange {
    start: u64,
    len: u64,
    block: Arc<RamBlock>,
    offset: u64,
    /// Made when somebody asks: a descriptor of its own for the block's file.
    file: OnceLock<Option<FileOffset>>,
}

impl RamRange {
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

impl fmt::Debug for RamRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, len, offset, .. } = self;
        write!(f, "{len:#x} bytes at {start:#x}: {} @{offset:#x}", self.block.id())
    }
}

impl GuestMemoryRegion for RamRange {
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

impl GuestMemoryRegionBytes for RamRange {}

/// The RAM of a view that can be written, in ascending order; see [`FlatView::ram`].
///
/// It leaves out the last page of the 64-bit space: vm-memory's accesses to a
/// `GuestMemoryBackend` would go on at address 0 behind it. The view has it, and does not.
#[derive(Clone, Debug, Default)]
pub struct GuestRam {
    ranges: Arc<[RamRange]>,
}

impl GuestRam {
    pub(crate) fn new(sections: &[Section]) -> Self {
        let writable = sections.iter().filter(|section| !section.readonly);
        let ranges = writable.filter_map(|section| RamRange::new(section, section.ram()?));
        Self { ranges: ranges.collect() }
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = RamRange;

    fn num_regions(&self) -> usize {
        self.ranges.len()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&RamRange> {
        let at = self.ranges.partition_point(|range| range.start <= address.0);
        let range = &self.ranges[at.checked_sub(1)?];
        (address.0 - range.start < range.len).then_some(range)
    }

    fn iter(&self) -> impl Iterator<Item = &RamRange> {
        self.ranges.iter()
    }
}

/// RAM and directly read ROM; writes to ROM are refused, and devices are not asked.
impl GuestMemory for FlatView {
    type PhysicalMemory = GuestRam;
    type Bitmap = DirtyMemory;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        Slices { view: self, address: address.0, count, access }.all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, RefSlice<'a, DirtyMemory>>, GuestMemoryError>
    {
        Ok(Slices { view: self, address: address.0, count, access })
    }

    fn physical_memory(&self) -> Option<&GuestRam> {
        Some(self.ram())
    }
}

/// The pieces of an access, up to and including the first error.
struct Slices<'a> {
    view: &'a FlatView,
    address: u64,
    count: usize,
    access: Permissions,
}

impl<'a> Slices<'a> {
    fn piece(&self) -> Result<RamSlice<'a>, GuestMemoryError> {
        let invalid = || GuestMemoryError::InvalidGuestAddress(GuestAddress(self.address));
        let section = self.view.at(self.address).ok_or_else(invalid)?;
        let block = section.ram().ok_or_else(invalid)?;
        if section.readonly && self.access.has_write() {
            return Err(invalid());
        }
        let reach = usize::try_from(section.last - self.address).unwrap_or(usize::MAX);
        let len = self.count.min(reach.saturating_add(1));
        let offset = section.offset + (self.address - section.start);
        block.slice(offset, len as u64).map_err(|_| invalid())
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, RefSlice<'a, DirtyMemory>>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let mut piece = self.piece();
        self.count = match &piece {
            Ok(slice) => self.count - slice.len(),
            Err(_) => 0,
        };
        if let (Ok(slice), 1..) = (&piece, self.count) {
            match self.address.checked_add(slice.len() as u64) {
                Some(next) => self.address = next,
                None => {
                    self.count = 0;
                    piece = Err(GuestMemoryError::GuestAddressOverflow);
                }
            }
        }
        Some(piece)
    }
}

impl std::iter::FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, RefSlice<'a, DirtyMemory>> for Slices<'a> {}

/// Who keeps the memory that this returns keeps the map as it was: take it anew for each
/// request.
impl GuestAddressSpace for AddressSpace {
    type M = FlatView;
    type T = Arc<FlatView>;

    fn memory(&self) -> Arc<FlatView> {
        self.view()
    }
}
