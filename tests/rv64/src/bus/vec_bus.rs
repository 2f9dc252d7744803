//! Memory as an array with bounds checks: the peer in comparisons of speed, and the oracle.

use std::ops::Range;

use ram_block::Scalar;

use crate::bus::bus::{Bus, CODE_PAGE, CodePage, Fault};

/// A `Vec<u8>` from an address on, for one hart. There are no devices.
///
/// Writes to code are not found: decoded code is current until the hart's next `fence.i`, which is
/// all that the unprivileged ISA manual ("Zifencei") promises to programs.
#[derive(Clone, Debug)]
pub struct VecBus {
    base: u64,
    /// The memory.
    pub bytes: Vec<u8>,
    reservation: Option<(u64, usize, [u8; 8])>,
    fences: u64,
}

impl VecBus {
    /// `len` bytes of zeros from `base` on.
    pub fn new(base: u64, len: usize) -> Self {
        Self { base, bytes: vec![0; len], reservation: None, fences: 0 }
    }

    /// Where the bytes of an integer are.
    #[inline(always)]
    fn range<T: Scalar>(&self, address: u64) -> Result<Range<usize>, Fault> {
        let at = usize::try_from(address.wrapping_sub(self.base)).map_err(|_| Fault::Access)?;
        Ok(at..at.wrapping_add(T::SIZE))
    }

    fn aligned<T: Scalar>(address: u64) -> Result<(), Fault> {
        if address.is_multiple_of(T::SIZE as u64) { Ok(()) } else { Err(Fault::Misaligned) }
    }
}

impl Bus for VecBus {
    #[inline(always)]
    fn load<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        let found = self.bytes.get(self.range::<T>(address)?).ok_or(Fault::Access)?;
        let mut bytes = [0; 8];
        bytes[..T::SIZE].copy_from_slice(found);
        Ok(T::from_bytes(bytes).little_endian())
    }

    #[inline(always)]
    fn store<T: Scalar>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        let range = self.range::<T>(address)?;
        let bytes = value.little_endian().to_bytes();
        self.bytes.get_mut(range).ok_or(Fault::Access)?.copy_from_slice(&bytes[..T::SIZE]);
        Ok(())
    }

    fn fetch(&mut self, address: u64) -> Result<u16, Fault> {
        self.load(address)
    }

    fn amo<T: Scalar>(&mut self, address: u64, mut update: impl FnMut(T) -> T) -> Result<T, Fault> {
        Self::aligned::<T>(address)?;
        let old = self.load(address)?;
        self.store(address, update(old))?;
        Ok(old)
    }

    fn load_reserved<T: Scalar>(&mut self, address: u64) -> Result<T, Fault> {
        self.reservation = None;
        Self::aligned::<T>(address)?;
        let value = self.load::<T>(address)?;
        self.reservation = Some((address, T::SIZE, value.to_bytes()));
        Ok(value)
    }

    fn store_conditional<T: Scalar>(&mut self, address: u64, value: T) -> Result<bool, Fault> {
        let reservation = self.reservation.take();
        Self::aligned::<T>(address)?;
        let Some((reserved, size, bytes)) = reservation else { return Ok(false) };
        if (reserved, size) != (address, T::SIZE) || self.load::<T>(address)?.to_bytes() != bytes {
            return Ok(false);
        }
        self.store(address, value)?;
        Ok(true)
    }

    fn clear_reservation(&mut self) {
        self.reservation = None;
    }

    fn fence_i(&mut self) {
        self.fences += 1;
    }

    fn watch_code(&mut self, pc: u64) -> Option<CodePage> {
        let len = CODE_PAGE - pc % CODE_PAGE;
        Some(CodePage { page: 0, offset: pc, generation: self.fences, len })
    }

    fn is_current(&mut self, _: u64, page: &CodePage) -> bool {
        page.generation == self.fences
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        self.fences
    }
}
