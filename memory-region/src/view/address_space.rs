//! The bus as its users see it.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::device::iommu::{Bus, Translation};
use crate::error::AccessError;
use crate::region_id::RegionId;
use crate::view::access::{self, Access};
use crate::view::flat_view::FlatView;
use crate::view::generation::{Extent, Generation};

/// The addresses below one root region, as a processor or a device on that bus
/// sees them.
///
/// Accesses use the view that the last commit published and never wait; one that
/// runs while a commit is made sees the old map or the new, not a mixture.
///
/// A clone is the same space. As a vm-memory `GuestAddressSpace` its memory is the RAM and
/// ROM of the current view.
#[derive(Clone)]
pub struct AddressSpace {
    name: Arc<str>,
    root: RegionId,
    /// The address lines that there are.
    mask: u64,
    view: Arc<ArcSwap<FlatView>>,
    generation: Arc<Generation>,
    /// The new view of a commit under way, while listeners are notified of it.
    pending: Arc<ArcSwapOption<FlatView>>,
}

impl AddressSpace {
    pub(crate) fn new(name: &str, root: RegionId, mask: u64, view: Arc<FlatView>) -> Self {
        let (name, view) = (name.into(), Arc::new(ArcSwap::new(view)));
        let (generation, pending) = (Arc::default(), Arc::default());
        Self { name, root, mask, view, generation, pending }
    }

    /// The space's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Whether both are the same space.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.view, &other.view)
    }

    /// The region that the space shows.
    pub fn root(&self) -> RegionId {
        self.root
    }

    /// The bits of an address that count: all, unless the bus
    /// [wraps](crate::MemoryMap::wrapping_address_space).
    pub fn address_mask(&self) -> u64 {
        self.mask
    }

    /// The current view; it stays as it is whatever is committed later.
    pub fn view(&self) -> Arc<FlatView> {
        self.view.load_full()
    }

    /// Sets the view that listeners are being notified of; returns the one before.
    #[must_use]
    pub(crate) fn set_pending(&self, pending: Option<Arc<FlatView>>) -> Option<Arc<FlatView>> {
        self.pending.swap(pending)
    }

    /// The views whose sections listeners may have at this moment: the pending one, if a commit is
    /// under way, and the current one.
    pub(crate) fn visible_views(&self) -> impl Iterator<Item = Arc<FlatView>> {
        // A caller that knows of a guest's write through the pending view finds the view here.
        // `set_pending` (a swap, which releases) comes before a listener has followed it, and so
        // before the write; what let the caller know of the write, a pause or a lock, comes after
        // the write and before this load.
        // The pending view is loaded first: if it is gone by then, it is the current one now, or
        // the commit failed and its listeners have merged its writes.
        let pending = self.pending.load_full();
        pending.into_iter().chain([self.view()])
    }

    /// Publishes `view`, which differs from the former one in `extent`; returns the former one.
    pub(crate) fn publish(&self, view: Arc<FlatView>, extent: Extent<'_>) -> Arc<FlatView> {
        let former = self.view.swap(view);
        self.generation.advance(extent);
        former
    }

    /// Which views it has had.
    pub(crate) fn generation(&self) -> Arc<Generation> {
        self.generation.clone()
    }

    /// Reads `data.len()` bytes at `address`.
    ///
    /// Devices are asked in accesses of 1, 2, 4 or 8 bytes, as they declare them.
    ///
    /// # Errors
    ///
    /// [`AccessError`] for the first byte at which nothing answers. Such bytes read as
    /// all ones, the others are read all the same.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let access = Access { address, len: data.len(), translations: 0 };
        self.read_as(access, data)
    }

    /// Writes `data` at `address`, and marks the RAM that it reaches for every client
    /// that logs it.
    ///
    /// # Errors
    ///
    /// [`AccessError`] for the first byte at which nothing answers or that is
    /// read-only. Such bytes are dropped, the others are written all the same.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), AccessError> {
        let access = Access { address, len: data.len(), translations: 0 };
        self.write_as(access, data)
    }

    #[inline]
    fn read_as(&self, access: Access, data: &mut [u8]) -> Result<(), AccessError> {
        let (view, address) = (self.view.load(), access.address & self.mask);
        if (data.len() as u64).saturating_sub(1) <= self.mask - address {
            return access::read_from(&view, Access { address, ..access }, data);
        }
        access::wrap(self.mask, address, data.len(), |address, bytes| {
            let len = bytes.len();
            access::read_from(&view, Access { address, len, ..access }, &mut data[bytes])
        })
    }

    #[inline]
    fn write_as(&self, access: Access, data: &[u8]) -> Result<(), AccessError> {
        let (view, address) = (self.view.load(), access.address & self.mask);
        if (data.len() as u64).saturating_sub(1) <= self.mask - address {
            return access::write_to(&view, Access { address, ..access }, data);
        }
        access::wrap(self.mask, address, data.len(), |address, bytes| {
            let len = bytes.len();
            access::write_to(&view, Access { address, len, ..access }, &data[bytes])
        })
    }
}

impl Bus for AddressSpace {
    fn read_translated(
        &self,
        address: u64,
        translations: usize,
        data: &mut [u8],
    ) -> Result<(), AccessError> {
        self.read_as(Access { address, len: data.len(), translations }, data)
    }

    fn write_translated(
        &self,
        address: u64,
        translations: usize,
        data: &[u8],
    ) -> Result<(), AccessError> {
        self.write_as(Access { address, len: data.len(), translations }, data)
    }
}

impl Translation {
    /// To `address` of `space`, and on from there for `len` bytes (of which 0 counts as 1). The
    /// space may show an IOMMU again, as one stage of a translation after another, but not
    /// without end.
    pub fn to(space: &Arc<AddressSpace>, address: u64, len: u64) -> Self {
        Self { target: Some((space.clone(), address)), len }
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("name", &self.name)
            .field("view", &self.view())
            .finish()
    }
}
