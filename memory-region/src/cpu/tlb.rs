//! Loads and stores by address.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ram_block::Scalar;

use crate::cpu::entry::Entry;
use crate::cpu::reservation::Reservation;
use crate::error::AccessError;
use crate::view::access;
use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;

/// How many pages a TLB has.
const ENTRIES: usize = 256;

/// A software TLB of one address space, for one processor: loads and stores of memory that it has
/// accessed before, at about the speed of an array.
///
/// Devices, ROM, holes, accesses that are not aligned and those that cross pages go through the
/// view, as [`AddressSpace::read`] and [`AddressSpace::write`] do. Stores are marked for every
/// client that is on. What a commit, a harvest, a code watch or a resize changes is followed by the
/// next access.
///
/// Each processor that runs on a thread of its own has its own TLB; aligned accesses of several are
/// atomic, and not ordered: an interpreter fences as its guest does.
///
/// `BITS` is the size of a page of the TLB, 2 to the power of that many bytes: 12 for machines with
/// memory in pages of 4 KiB, less for one whose memory is in smaller pieces. Only pages that one
/// section has as a whole are kept.
///
/// ```
/// use memory_region::{MemoryMap, Tlb};
/// use ram_block::{DirtyClient, RamBlock};
///
/// let map = MemoryMap::new();
/// let ram = RamBlock::anonymous("ram", 16 << 20)?;
/// let (root, region) = map.transaction(|map| {
///     let root = map.container("system", 1 << 32)?;
///     let region = map.ram("ram", ram.clone())?;
///     map.add_subregion(root, 0x8000_0000, region)?;
///     Ok((root, region))
/// })?;
/// let space = map.address_space("hart", root)?;
/// let mut log = map.claim_log(region, DirtyClient::VGA)?;
///
/// let mut tlb: Tlb = Tlb::new(&space);
/// tlb.store_le(0x8000_5000, 0x1234_5678_u32)?;
/// assert_eq!(tlb.load_le::<u16>(0x8000_5002)?, 0x1234);
/// assert_eq!(tlb.load_be::<u16>(0x8000_5002)?, 0x3412);
/// assert!(tlb.load_le::<u8>(0x1000).is_err()); // nothing answers
/// assert!(log.snapshot_and_clear(0..ram.len())?.is_dirty(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tlb<const BITS: u32 = 12> {
    space: Arc<AddressSpace>,
    /// The generation of the space's current view, here without a detour by the space.
    current: Arc<AtomicU64>,
    /// The view of `generation`, for what is in no entry.
    pub(super) view: Arc<FlatView>,
    generation: u64,
    pub(super) entries: Box<[Entry<BITS>; ENTRIES]>,
    pub(super) reservation: Option<Reservation>,
}

impl<const BITS: u32> Tlb<BITS> {
    /// An empty TLB of `space`.
    pub fn new(space: &Arc<AddressSpace>) -> Self {
        let current = space.shared_generation();
        let generation = current.load(Ordering::Acquire);
        let entries: Box<[Entry<BITS>]> = (0..ENTRIES).map(|_| Entry::empty()).collect();
        let Ok(entries) = entries.try_into() else { unreachable!("there are as many") };
        Self {
            space: space.clone(),
            current,
            view: space.view(),
            generation,
            entries,
            reservation: None,
        }
    }

    /// The space that it is of.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Forgets all pages, and so lets go of their blocks. The next accesses find them again.
    pub fn flush(&mut self) {
        self.entries.iter_mut().for_each(|entry| *entry = Entry::empty());
    }

    /// The generation of the current view; the view that is loaded after this is as late or later.
    #[inline(always)]
    pub(super) fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// The entry for a page. Pages at powers of two from each other, as code, data and stacks are
    /// often, have different ones.
    #[inline(always)]
    pub(super) fn index(address: u64) -> usize {
        let page = address >> BITS;
        // Less than the number of entries, which is a power of two.
        offset_in_page(page ^ page >> ENTRIES.ilog2()) & (ENTRIES - 1)
    }

    /// Loads a little-endian integer.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::read`].
    #[inline]
    pub fn load_le<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.load::<T>(address).map(T::little_endian)
    }

    /// Loads a big-endian integer.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::read`].
    #[inline]
    pub fn load_be<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.load::<T>(address).map(T::big_endian)
    }

    /// Stores a little-endian integer, and marks it for every client that is on.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::write`].
    #[inline]
    pub fn store_le<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        self.store(address, value.little_endian())
    }

    /// Stores a big-endian integer, and marks it for every client that is on.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::write`].
    #[inline]
    pub fn store_be<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        self.store(address, value.big_endian())
    }

    /// Loads the bytes at `address`, as they are in memory.
    #[inline(always)]
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        let generation = self.current();
        match self.entries[Self::index(address)].for_load(address, T::SIZE, generation) {
            Some(page) => Ok(page.load(offset_in_page(address))),
            None => self.load_slowly(address),
        }
    }

    #[inline(always)]
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        let generation = self.current();
        match self.entries[Self::index(address)].for_store(address, T::SIZE, generation) {
            Some(page) => {
                page.store(offset_in_page(address), value);
                Ok(())
            }
            None => self.store_slowly(address, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slowly<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        let generation = self.refill(address);
        if let Some(page) =
            self.entries[Self::index(address)].for_load(address, T::SIZE, generation)
        {
            return Ok(page.load(offset_in_page(address)));
        }
        let mut bytes = [0; 8];
        access::read(&self.view, address, &mut bytes[..T::SIZE])?;
        Ok(T::from_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slowly<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        let generation = self.refill(address);
        if let Some(page) =
            self.entries[Self::index(address)].for_store(address, T::SIZE, generation)
        {
            page.store(offset_in_page(address), value);
            return Ok(());
        }
        access::write(&self.view, address, &value.to_bytes()[..T::SIZE])
    }

    /// Fills the entry of `address` from the current view, if it is memory; returns the generation
    /// of the view.
    pub(super) fn refill(&mut self, address: u64) -> u64 {
        let generation = self.current();
        if generation != self.generation {
            self.view = self.space.view();
            self.generation = generation;
        }
        let entry = &mut self.entries[Self::index(address)];
        match self.view.find(address) {
            Ok(section) => entry.fill(address, section, generation),
            Err(_) => *entry = Entry::empty(),
        }
        generation
    }
}

/// The bytes before `address` in its page; upper bits are ignored there.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // on 32-bit hosts of bits that are ignored
pub(super) fn offset_in_page(address: u64) -> usize {
    address as usize
}

impl<const BITS: u32> fmt::Debug for Tlb<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.entries.iter().filter(|entry| entry.page.is_some()).count();
        f.debug_struct("Tlb").field("space", &self.space.name()).field("pages", &pages).finish()
    }
}
