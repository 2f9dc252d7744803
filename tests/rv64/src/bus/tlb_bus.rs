//! Memory behind a software TLB: what a machine's hart has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memory_region::{AccessError, AddressSpace, Tlb};
use ram_block::Scalar;

use crate::bus::bus::{Bus, CodePage, Fault};
use crate::bus::code_pages::CodePages;

/// Devices whose regions are traps ([`Transaction::trap`](memory_region::Transaction::trap)): the
/// bus calls them itself, so they need not be what a memory map can call from any thread.
pub trait Devices {
    /// Reads `size` bytes at byte `offset` of the region that was made with `token`.
    fn load(&mut self, token: u64, offset: u64, size: usize) -> u64;

    /// Writes the low `size` bytes of `value` there.
    fn store(&mut self, token: u64, offset: u64, size: usize, value: u64);
}

/// No devices.
impl Devices for () {
    fn load(&mut self, _: u64, _: u64, _: usize) -> u64 {
        0
    }

    fn store(&mut self, _: u64, _: u64, _: usize, _: u64) {}
}

/// An address space as one hart accesses it, through a TLB of its own.
///
/// Decoded code is dropped when anything writes it: this hart or another one, a device, a loader.
/// A hart's own stores are there after its next jump, which is more than programs can rely on.
#[derive(Debug)]
pub struct TlbBus<D> {
    tlb: Tlb,
    code: Arc<CodePages>,
    /// That of `code`.
    epoch: Arc<AtomicU64>,
    devices: D,
}

fn fault(error: &AccessError) -> Fault {
    match error {
        AccessError::Misaligned { .. } => Fault::Misaligned,
        _ => Fault::Access,
    }
}

impl<D: Devices> TlbBus<D> {
    /// A bus of `space`, in which code in the block of `code` is kept decoded.
    pub fn new(space: &Arc<AddressSpace>, code: &Arc<CodePages>, devices: D) -> Self {
        let epoch = code.epoch().clone();
        Self { tlb: Tlb::new(space), code: code.clone(), epoch, devices }
    }

    /// What a load that memory has not answered gives.
    #[cold]
    #[inline(never)]
    fn load_device<T: Scalar>(&mut self, error: AccessError) -> Result<T, Fault> {
        let AccessError::Trap(trap) = error else { return Err(fault(&error)) };
        let value = self.devices.load(trap.token, trap.offset, trap.size);
        Ok(T::from_bytes(value.to_le_bytes()).little_endian())
    }

    /// As [`load_device`](Self::load_device), of a store.
    #[cold]
    #[inline(never)]
    fn store_device(&mut self, error: AccessError) -> Result<(), Fault> {
        let AccessError::Trap(trap) = error else { return Err(fault(&error)) };
        let value = trap.value.unwrap_or_default();
        self.devices.store(trap.token, trap.offset, trap.size, value);
        Ok(())
    }
}

impl<D: Devices> Bus for TlbBus<D> {
    #[inline(always)]
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        match self.tlb.load_le(address) {
            Ok(value) => Ok(value),
            Err(error) => self.load_device(error),
        }
    }

    #[inline(always)]
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        match self.tlb.store_le(address, value) {
            Ok(()) => Ok(()),
            Err(error) => self.store_device(error),
        }
    }

    fn fetch(&mut self, address: u64) -> Result<u16, Fault> {
        // Devices have no code: to read them would change them.
        self.tlb.ram_at(address).ok_or(Fault::Access)?;
        self.tlb.fetch_le(address).map_err(|error| fault(&error))
    }

    fn amo<T: Scalar>(&mut self, address: u64, update: impl FnMut(T) -> T) -> Result<T, Fault> {
        self.tlb.fetch_update_le(address, update).map_err(|error| fault(&error))
    }

    fn load_reserved<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        let value = self.tlb.load_reserved_le(address).map_err(|error| fault(&error))?;
        // The TLB's loads are not ordered.
        fence(Ordering::Acquire);
        Ok(value)
    }

    fn store_conditional<T: Scalar>(&mut self, address: u64, value: T) -> Result<bool, Fault> {
        self.tlb.store_conditional_le(address, value).map_err(|error| fault(&error))
    }

    fn clear_reservation(&mut self) {
        self.tlb.clear_reservation();
    }

    fn fence_i(&mut self) {
        // The hook has counted this hart's stores before they returned.
    }

    fn watch_code(&mut self, pc: u64) -> Option<CodePage> {
        let (block, offset, len) = self.tlb.ram_at(pc)?;
        self.code.watch(block, offset, len)
    }

    fn is_current(&mut self, pc: u64, page: &CodePage) -> bool {
        let Some((block, offset, len)) = self.tlb.ram_at(pc) else { return false };
        self.code.page_at(block, offset, len) == Some(*page)
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        // Both only grow, so the sum is new if one of them is.
        self.epoch.load(Ordering::Acquire).wrapping_add(self.tlb.generation())
    }
}
