//! The bus as its users see it.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ram_block::{HazardCell, HazardGuard, Reclaimed};

use crate::device::iommu::{Bus, Translation};
use crate::error::AccessError;
use crate::region_id::RegionId;
use crate::view::access::{self, Access};
use crate::view::flat_view::FlatView;
use crate::view::generation::{Extent, Generation};

/// How many former views a space keeps at most, and of how many sections together: what is kept
/// costs memory, what is not costs a barrier of all threads.
const MAX_KEPT_VIEWS: usize = 32;
const MAX_KEPT_SECTIONS: usize = 4096;

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
    view: Arc<HazardCell<FlatView>>,
    generation: Arc<Generation>,
    /// The new view of a commit under way, while listeners are notified of it.
    pending: Arc<ArcSwapOption<FlatView>>,
}

impl AddressSpace {
    pub(crate) fn new(name: &str, root: RegionId, mask: u64, view: Arc<FlatView>) -> Self {
        let (name, view) = (name.into(), Arc::new(HazardCell::new(view)));
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

    /// Publishes `view`, which differs from the former one in `extent`; returns whether so many
    /// former views are kept, or the last of them has files open, that they are to be
    /// [reclaimed](Self::reclaim), also if the current one has all that they have.
    pub(crate) fn publish(&self, view: Arc<FlatView>, extent: Extent<'_>) -> bool {
        let sections = view.sections().len();
        let has_files = self.view.load().has_files();
        let kept = self.view.set(view);
        self.generation.advance(extent);
        has_files || kept >= MAX_KEPT_VIEWS || kept * sections >= MAX_KEPT_SECTIONS
    }

    /// The former views of these spaces, to be dropped after the update lock; those that threads
    /// are reading are dropped by the last of them.
    pub(crate) fn reclaim<'a>(spaces: impl Iterator<Item = &'a Self>) -> Reclaimed {
        HazardCell::reclaim(spaces.map(|space| &*space.view))
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
        if let Some(address) = self.within(address, data.len()) {
            if let Some(view) = self.view.load_at_once() {
                if access::read_main(&view, address, data) {
                    return Ok(());
                }
                return read_rest(view, address, data);
            }
        }
        self.read_as(address, 0, data)
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
        if let Some(address) = self.within(address, data.len()) {
            if let Some(view) = self.view.load_at_once() {
                if access::write_main(&view, address, data) {
                    return Ok(());
                }
                return write_rest(view, address, data);
            }
        }
        self.write_as(address, 0, data)
    }

    /// Where on the bus an access is, unless it passes its end.
    #[inline(always)]
    fn within(&self, address: u64, len: usize) -> Option<u64> {
        let address = address & self.mask;
        ((len as u64).saturating_sub(1) <= self.mask - address).then_some(address)
    }

    /// As [`read`](Self::read), after so many translations. What a thread does for the first time,
    /// or from within another access, comes here, and what passes the end of the bus.
    #[inline(never)]
    fn read_as(
        &self,
        address: u64,
        translations: usize,
        data: &mut [u8],
    ) -> Result<(), AccessError> {
        let view = self.view.load();
        let len = data.len();
        if let Some(address) = self.within(address, len) {
            return access::read_from(&view, Access { address, len, translations }, data);
        }
        access::wrap(self.mask, address & self.mask, len, |address, bytes| {
            let access = Access { address, len: bytes.len(), translations };
            access::read_from(&view, access, &mut data[bytes])
        })
    }

    /// As [`read_as`](Self::read_as), for a write.
    #[inline(never)]
    fn write_as(&self, address: u64, translations: usize, data: &[u8]) -> Result<(), AccessError> {
        let view = self.view.load();
        let len = data.len();
        if let Some(address) = self.within(address, len) {
            return access::write_to(&view, Access { address, len, translations }, data);
        }
        access::wrap(self.mask, address & self.mask, len, |address, bytes| {
            let access = Access { address, len: bytes.len(), translations };
            access::write_to(&view, access, &data[bytes])
        })
    }
}

/// Reads what is not in the RAM that most reads are to. It is given the guard, so that nothing is
/// called that may panic while the other reads have it: a guard that is dropped then, too, would be
/// in memory.
#[inline(never)]
fn read_rest(
    view: HazardGuard<'_, FlatView>,
    address: u64,
    data: &mut [u8],
) -> Result<(), AccessError> {
    access::read(&view, address, data)
}

/// As [`read_rest`].
#[inline(never)]
fn write_rest(
    view: HazardGuard<'_, FlatView>,
    address: u64,
    data: &[u8],
) -> Result<(), AccessError> {
    access::write(&view, address, data)
}

impl Bus for AddressSpace {
    fn read_translated(
        &self,
        address: u64,
        translations: usize,
        data: &mut [u8],
    ) -> Result<(), AccessError> {
        self.read_as(address, translations, data)
    }

    fn write_translated(
        &self,
        address: u64,
        translations: usize,
        data: &[u8],
    ) -> Result<(), AccessError> {
        self.write_as(address, translations, data)
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
