//! A flat view as vm-memory's `GuestMemory`, an address space as its `GuestAddressSpace`: what
//! its crates (loaders, virtqueues) read and write is the view's RAM, and what they write is
//! marked.

use std::sync::Arc;

use ram_block::vm_memory::bitmap::RefSlice;
use ram_block::vm_memory::guest_memory::GuestMemorySliceIterator;
use ram_block::vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, Permissions, VolatileSlice,
};
use ram_block::{DirtyMemory, RamSlice};

use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;
use crate::view::guest_ram::GuestRam;

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
        let section = self.view.section_at(self.address).ok_or_else(invalid)?;
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
