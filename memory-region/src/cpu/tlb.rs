//! Loads and stores by address.

use std::fmt;
use std::sync::Arc;

use ram_block::Scalar;

use crate::cpu::entry::Entry;
use crate::cpu::reservation::Reservation;
use crate::cpu::statistics::TlbStatistics;
use crate::cpu::watchpoints::{Accesses, Watchpoints};
use crate::error::AccessError;
use crate::view::access;
use crate::view::address_space::AddressSpace;
use crate::view::flat_view::FlatView;
use crate::view::generation::Generation;

/// How many pages of data a TLB has.
const ENTRIES: usize = 256;
/// How many pages of instructions it has.
const CODE_ENTRIES: usize = 16;

/// A software TLB of one address space, for one processor: loads and stores of memory that it has
/// accessed before, at about the speed of an array.
///
/// Devices, holes, stores to ROM, accesses that are not aligned and those that cross pages go
/// through the view, as [`AddressSpace::read`] and [`AddressSpace::write`] do. Stores are marked
/// for every client that is on. What a commit, a harvest or a code watch changes is followed by the
/// next access; so is the resize of a block whose region is resized with it, as
/// [`RamBlock::resize`](ram_block::RamBlock::resize) says. Once its space has been
/// [removed](crate::MemoryMap::remove_address_space), nothing answers. A page that has left keeps
/// its block until another takes its place in the TLB, or until [`flush`](Self::flush).
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
    /// Which views the space has had, here without a detour by the space.
    pub(super) current: Arc<Generation>,
    /// The number of the view up to which the entries have followed.
    followed: u64,
    /// That view or a later one, for what is in no entry.
    pub(super) view: Arc<FlatView>,
    pub(super) entries: Box<[Entry<BITS>; ENTRIES]>,
    /// The page of the last instruction, which is in no entry of a table: whether the next one is
    /// there, too, is found without a look-up, and data do not take its place.
    executed: Entry<BITS>,
    /// Pages of instructions before that.
    code: Box<[Entry<BITS>; CODE_ENTRIES]>,
    /// The bits of an address that count.
    pub(super) mask: u64,
    pub(super) watchpoints: Watchpoints,
    pub(super) reservation: Option<Reservation>,
    /// Without the marked stores of the pages that it has.
    pub(super) statistics: TlbStatistics,
}

impl<const BITS: u32> Tlb<BITS> {
    /// An empty TLB of `space`.
    pub fn new(space: &Arc<AddressSpace>) -> Self {
        let current = space.generation();
        let followed = current.number();
        Self {
            space: space.clone(),
            current,
            followed,
            view: space.view(),
            entries: empty(),
            executed: Entry::empty(),
            code: empty(),
            mask: space.address_mask(),
            watchpoints: Watchpoints::default(),
            reservation: None,
            statistics: TlbStatistics::default(),
        }
    }

    /// The space that it is of.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Forgets all pages, and so lets go of their blocks, and of what has left the space since the
    /// last access. The next accesses find them again.
    pub fn flush(&mut self) {
        let gone: u64 = self.all_entries().map(Entry::let_go).sum();
        self.statistics.marked_stores += gone;
        // The view of the last access has blocks and devices, too.
        self.keep_up();
    }

    /// Follows the commits since the last access; to be called before entries are used.
    #[inline(always)]
    pub(super) fn keep_up(&mut self) {
        let current = self.current.number();
        if current != self.followed {
            self.follow(current);
        }
    }

    /// Takes the tags of the pages that moved until the view of number `current`.
    #[cold]
    #[inline(never)]
    fn follow(&mut self, current: u64) {
        let Self { entries, code, executed, mask, .. } = self;
        let is_all = self.current.moved_since(self.followed, |first, last| {
            let code = code.iter_mut().chain([&mut *executed]);
            code.for_each(|entry| entry.take_tags_in(*mask, (first, last)));
            // Where upper bits do not count, a page has many tags.
            if *mask == u64::MAX && (last - first) >> BITS < (ENTRIES / 4) as u64 {
                for page in first >> BITS..=last >> BITS {
                    entries[Self::index(page << BITS)].take_tags_in(*mask, (first, last));
                }
            } else {
                entries.iter_mut().for_each(|entry| entry.take_tags_in(*mask, (first, last)));
            }
        });
        if !is_all {
            self.take_all_tags();
        }
        self.statistics.commits += 1;
        // What is published after this number has another number; the loop of accesses finds it.
        self.followed = current;
        self.view = self.space.view();
    }

    /// What it has done so far. Costs a look at each entry.
    pub fn statistics(&self) -> TlbStatistics {
        let entries = self.entries.iter().chain(&*self.code).chain([&self.executed]);
        let of_pages: u64 = entries.map(Entry::marked_stores).sum();
        let marked_stores = self.statistics.marked_stores + of_pages;
        TlbStatistics { marked_stores, ..self.statistics }
    }

    fn all_entries(&mut self) -> impl Iterator<Item = &mut Entry<BITS>> {
        self.entries.iter_mut().chain(&mut *self.code).chain([&mut self.executed])
    }

    /// Has all pages compared with the current view before they are used again.
    pub(super) fn take_all_tags(&mut self) {
        self.all_entries().for_each(Entry::take_tags);
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
        self.store(address, value.big_endian()).map_err(|error| match error {
            AccessError::Trap(trap) => AccessError::Trap(trap.swapped()),
            error => error,
        })
    }

    /// Fetches a part of an instruction as a little-endian integer: a load that watchpoints do not
    /// stop, and whose pages are kept apart from those of data. Instructions that are aligned to
    /// less than their size are fetched in parts of that alignment: others go through the view.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::read`]; of a trap [`AccessError::Trap`].
    #[inline]
    pub fn fetch_le<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.fetch::<T>(address).map(T::little_endian)
    }

    /// Fetches a part of an instruction as a big-endian integer; see
    /// [`fetch_le`](Self::fetch_le).
    ///
    /// # Errors
    ///
    /// As [`fetch_le`](Self::fetch_le).
    #[inline]
    pub fn fetch_be<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.fetch::<T>(address).map(T::big_endian)
    }

    #[inline(always)]
    fn fetch<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.keep_up();
        match self.executed.for_load(address, T::SIZE) {
            Some(page) => Ok(page.load(offset_in_page(address))),
            None => self.fetch_slowly(address),
        }
    }

    #[inline(always)]
    fn code_index(address: u64) -> usize {
        offset_in_page(address >> BITS) & (CODE_ENTRIES - 1)
    }

    #[cold]
    #[inline(never)]
    fn fetch_slowly<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        // The former page goes to its place, the next one comes from there.
        if let Some(former) = self.executed.address() {
            std::mem::swap(&mut self.executed, &mut self.code[Self::code_index(former)]);
        }
        std::mem::swap(&mut self.executed, &mut self.code[Self::code_index(address)]);
        if let Some(page) = self.executed.for_load(address, T::SIZE) {
            return Ok(page.load(offset_in_page(address)));
        }
        let gone = match self.view.find(address & self.mask) {
            Ok(section) => self.executed.fill(address, self.mask, section),
            Err(_) => self.executed.let_go(),
        };
        self.statistics.refills += 1;
        self.statistics.marked_stores += gone;
        match self.executed.for_load(address, T::SIZE) {
            Some(page) => Ok(page.load(offset_in_page(address))),
            None => self.read_view(address),
        }
    }

    /// Loads the bytes at `address`, as they are in memory.
    #[inline(always)]
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.keep_up();
        match self.entries[Self::index(address)].for_load(address, T::SIZE) {
            Some(page) => Ok(page.load(offset_in_page(address))),
            None => self.load_slowly(address),
        }
    }

    #[inline(always)]
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        self.keep_up();
        match self.entries[Self::index(address)].for_store(address, T::SIZE) {
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
        self.watchpoints.check(self.mask, address, T::SIZE, Accesses::LOAD)?;
        self.refill(address);
        if let Some(page) = self.entries[Self::index(address)].for_load(address, T::SIZE) {
            return Ok(page.load(offset_in_page(address)));
        }
        self.read_view(address)
    }

    /// Reads what is in no entry.
    fn read_view<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.statistics.by_view += 1;
        if let Some(trap) = access::trap(&self.view, self.mask, address, (T::SIZE, None)) {
            return Err(AccessError::Trap(trap));
        }
        let mut bytes = [0; 8];
        access::wrap(self.mask, address, T::SIZE, |address, piece| {
            access::read(&self.view, address, &mut bytes[..T::SIZE][piece])
        })?;
        Ok(T::from_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slowly<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), AccessError> {
        self.watchpoints.check(self.mask, address, T::SIZE, Accesses::STORE)?;
        self.refill(address);
        if let Some(page) = self.entries[Self::index(address)].for_store(address, T::SIZE) {
            page.store(offset_in_page(address), value);
            return Ok(());
        }
        self.statistics.by_view += 1;
        let bytes = value.to_bytes();
        // As the caller of `store_le` has it.
        let stored = (T::SIZE, Some(u64::from_le_bytes(bytes)));
        if let Some(trap) = access::trap(&self.view, self.mask, address, stored) {
            return Err(AccessError::Trap(trap));
        }
        access::wrap(self.mask, address, T::SIZE, |address, piece| {
            access::write(&self.view, address, &bytes[..T::SIZE][piece])
        })
    }

    /// Fills the entry of `address` from the current view, if it is memory.
    pub(super) fn refill(&mut self, address: u64) {
        self.keep_up();
        let entry = &mut self.entries[Self::index(address)];
        let gone = match self.view.find(address & self.mask) {
            Ok(section) => entry.fill(address, self.mask, section),
            Err(_) => entry.let_go(),
        };
        self.statistics.refills += 1;
        self.statistics.marked_stores += gone;
        let first = address & u64::MAX << BITS;
        entry.withhold(self.watchpoints.stops_in(self.mask, first, 1 << BITS));
    }
}

/// As many empty entries.
fn empty<const BITS: u32, const N: usize>() -> Box<[Entry<BITS>; N]> {
    let entries: Box<[Entry<BITS>]> = (0..N).map(|_| Entry::empty()).collect();
    entries.try_into().unwrap_or_else(|_| unreachable!("there are as many"))
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
