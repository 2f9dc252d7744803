//! Atomic accesses by address.

use ram_block::{RamPage, Scalar};

use crate::cpu::reservation::Reservation;
use crate::cpu::tlb::{Tlb, offset_in_page};
use crate::cpu::watchpoints::Accesses;
use crate::error::AccessError;

impl<const BITS: u32> Tlb<BITS> {
    /// Replaces a little-endian integer by what `update` makes of it, atomically, and marks it for
    /// every client that is on; returns what was there. Ordered with all other such accesses, as by
    /// `SeqCst`. If another thread comes between, `update` is called again.
    ///
    /// ```
    /// # use memory_region::{MemoryMap, Tlb};
    /// # use ram_block::RamBlock;
    /// # let map = MemoryMap::new();
    /// # let root = map.transaction(|map| map.ram("ram", RamBlock::anonymous("ram", 1 << 20)?))?;
    /// # let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root)?);
    /// tlb.store_le(0x100, 5_u32)?;
    /// assert_eq!(tlb.fetch_update_le(0x100, |old: u32| old.max(9))?, 5); // amomaxu.w
    /// assert_eq!(tlb.load_le::<u32>(0x100)?, 9);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AccessError::Misaligned`], [`AccessError::NotMemory`] if a device answers, and as
    /// [`AddressSpace::write`](crate::AddressSpace::write).
    pub fn fetch_update_le<T: Scalar>(
        &mut self,
        address: u64,
        mut update: impl FnMut(T) -> T,
    ) -> Result<T, AccessError> {
        self.check_aligned::<T>(address)?;
        self.keep_up();
        let entry = Self::index(address);
        if self.entries[entry].for_store(address, T::SIZE).is_none() {
            // Before the load: a device's register may change when it is read.
            self.refill(address);
            if self.entries[entry].for_store(address, T::SIZE).is_none() {
                self.view.memory_for_atomic(self.mask, address, T::SIZE)?;
            }
        }
        let mut old = self.load_le(address)?;
        loop {
            let was = self.compare_exchange_le(address, old, update(old))?;
            if was.to_bytes() == old.to_bytes() {
                return Ok(was);
            }
            old = was;
        }
    }

    /// Replaces a little-endian integer by `new` if it is `current`, atomically, and then marks it.
    /// Returns what was there; it was replaced if that is `current`. Ordered as
    /// [`fetch_update_le`](Self::fetch_update_le).
    ///
    /// # Errors
    ///
    /// As [`fetch_update_le`](Self::fetch_update_le).
    pub fn compare_exchange_le<T: Scalar>(
        &mut self,
        address: u64,
        current: T,
        new: T,
    ) -> Result<T, AccessError> {
        let (current, new) = (current.little_endian(), new.little_endian());
        let was = self.compare_exchange(address, current, new)?;
        Ok(was.unwrap_or_else(|other| other).little_endian())
    }

    /// Loads a little-endian integer, and reserves it: the next
    /// [`store_conditional_le`](Self::store_conditional_le) stores only if it has the same value
    /// still. (A value that was changed and changed back is taken for unchanged, as by QEMU.)
    ///
    /// # Errors
    ///
    /// [`AccessError::Misaligned`], and as [`AddressSpace::read`](crate::AddressSpace::read): ROM
    /// and devices can be loaded from, but not stored to by the conditional store.
    pub fn load_reserved_le<T: Scalar>(&mut self, address: u64) -> Result<T, AccessError> {
        self.reservation = None;
        self.check_aligned::<T>(address)?;
        let value = self.load_le::<T>(address)?;
        let bytes = value.to_bytes();
        self.reservation = Some(Reservation { address, size: T::SIZE, bytes });
        Ok(value)
    }

    /// Stores a little-endian integer if the last
    /// [`load_reserved_le`](Self::load_reserved_le) was of this address and size, and nothing else
    /// was stored there since; returns whether it has stored. The reservation ends.
    ///
    /// # Errors
    ///
    /// As [`fetch_update_le`](Self::fetch_update_le).
    pub fn store_conditional_le<T: Scalar>(
        &mut self,
        address: u64,
        value: T,
    ) -> Result<bool, AccessError> {
        let reservation = self.reservation.take();
        self.check_aligned::<T>(address)?;
        let reserved =
            reservation.filter(|reserved| reserved.address == address && reserved.size == T::SIZE);
        let Some(Reservation { bytes, .. }) = reserved else { return Ok(false) };
        let (current, new) = (T::from_bytes(bytes).little_endian(), value.little_endian());
        let stored = self.compare_exchange(address, current, new);
        if matches!(stored, Err(AccessError::Watchpoint { .. })) {
            // Not carried out: the debugger lets the same store be made again.
            self.reservation = reservation;
        }
        Ok(stored?.is_ok())
    }

    /// Ends a reservation, as an exception or the return from one does.
    pub fn clear_reservation(&mut self) {
        self.reservation = None;
    }

    fn check_aligned<T: Scalar>(&self, address: u64) -> Result<(), AccessError> {
        match address % T::SIZE as u64 {
            0 => Ok(()),
            _ => Err(AccessError::Misaligned { address, len: T::SIZE }),
        }
    }

    /// Both in the host's byte order; what is there instead of `current` is the inner error.
    #[inline]
    fn compare_exchange<T: Scalar>(
        &mut self,
        address: u64,
        current: T,
        new: T,
    ) -> Result<Result<T, T>, AccessError> {
        self.keep_up();
        match self.entries[Self::index(address)].for_store(address, T::SIZE) {
            Some(page) => Ok(page.compare_exchange(offset_in_page(address), current, new)),
            None => self.compare_exchange_slowly(address, current, new),
        }
    }

    #[cold]
    #[inline(never)]
    fn compare_exchange_slowly<T: Scalar>(
        &mut self,
        address: u64,
        current: T,
        new: T,
    ) -> Result<Result<T, T>, AccessError> {
        self.check_aligned::<T>(address)?;
        self.watchpoints.check(self.mask, address, T::SIZE, Accesses::BOTH)?;
        self.refill(address);
        if let Some(page) = self.entries[Self::index(address)].for_store(address, T::SIZE) {
            return Ok(page.compare_exchange(offset_in_page(address), current, new));
        }
        let (block, offset) = self.view.memory_for_atomic(self.mask, address, T::SIZE)?;
        // Of a page that several sections share, the sixteen bytes around these.
        let mut page = RamPage::<4>::new(block, offset & !15)?;
        Ok(page.compare_exchange(offset_in_page(offset), current, new))
    }
}
