//! Memory behind a software TLB: what a machine's hart has.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory_region::{AccessError, AddressSpace, Tlb};
use ram_block::Scalar;

use crate::bus::bus::{Bus, CodePage, Fault};
use crate::bus::code_pages::CodePages;

/// An address space as one hart accesses it, through a TLB of its own.
///
/// Decoded code is dropped when anything writes it: this hart or another one, a device, a loader.
/// The effect of a hart's own store is there for its next instruction, earlier than `fence.i`
/// promises.
#[derive(Debug)]
pub struct TlbBus {
    tlb: Tlb,
    code: Arc<CodePages>,
}

fn fault(error: &AccessError) -> Fault {
    match error {
        AccessError::Misaligned { .. } => Fault::Misaligned,
        _ => Fault::Access,
    }
}

impl TlbBus {
    /// A bus of `space`, in which code in the block of `code` is kept decoded.
    pub fn new(space: &Arc<AddressSpace>, code: &Arc<CodePages>) -> Self {
        Self { tlb: Tlb::new(space), code: code.clone() }
    }
}

impl Bus for TlbBus {
    #[inline(always)]
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        self.tlb.load_le(address).map_err(|error| fault(&error))
    }

    #[inline(always)]
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        self.tlb.store_le(address, value).map_err(|error| fault(&error))
    }

    fn fetch(&mut self, address: u64) -> Result<u16, Fault> {
        // Devices have no code: to read them would change them.
        self.tlb.ram_at(address).ok_or(Fault::Access)?;
        self.load(address)
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
        let (block, offset) = self.tlb.ram_at(pc)?;
        self.code.watch(block, offset)
    }

    fn generation(&self, page: usize) -> u64 {
        self.code.generation(page)
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        self.code.epoch()
    }
}
