//! Devices on a bus, and what they say of their accesses.

use crate::fault::bus_fault::BusFault;

/// A device whose registers are accessed through a region.
///
/// Handlers are called by the thread that makes the access, perhaps by several at once, while it
/// holds no lock of this crate: a handler may access the bus, or change the map. A change waits
/// for other changes and for their listeners, so a handler that makes one must hold no lock that a
/// listener takes. Coalesced writes come from the thread that flushes them, which may not be the
/// vCPU's.
///
/// An access by which a handler would reach its own device again, directly or through another
/// device, is not carried out (QEMU: `MemReentrancyGuard`): it reads as all ones, or is dropped,
/// and fails with [`AccessError::Reentered`](crate::AccessError::Reentered). So a device may hold
/// a lock while it uses the bus, as long as no two devices use each other.
pub trait MmioDevice: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8) at byte `offset` of the region.
    ///
    /// The value is in the low `size` bytes; on the bus it has the byte order that
    /// [`access`](Self::access) says, little-endian if it says none. Offsets without a
    /// register read as all ones on most buses.
    fn read(&self, offset: u64, size: usize) -> u64;

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at byte `offset`.
    fn write(&self, offset: u64, size: usize, value: u64);

    /// As [`read`](Self::read), for a device that can answer with a bus fault: its bytes read as
    /// all ones then, and the access fails with [`AccessError::Fault`](crate::AccessError::Fault).
    ///
    /// # Errors
    ///
    /// The fault. By default there is none.
    fn try_read(&self, offset: u64, size: usize) -> Result<u64, BusFault> {
        Ok(self.read(offset, size))
    }

    /// As [`write`](Self::write), for a device that can answer with a bus fault.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read).
    fn try_write(&self, offset: u64, size: usize, value: u64) -> Result<(), BusFault> {
        self.write(offset, size, value);
        Ok(())
    }

    /// Which accesses the device takes. Asked once, when its region is made.
    fn access(&self) -> MmioAccess {
        MmioAccess::default()
    }
}

/// Which accesses a device takes, and how its handlers are called for them.
///
/// By default all that a processor makes, as it makes them, little-endian.
///
/// ```
/// use memory_region::{AccessSizes, Endianness, MmioAccess};
///
/// // 32-bit registers, of which guests may read bytes too.
/// let access = MmioAccess {
///     valid: AccessSizes { min: 1, max: 4, unaligned: false },
///     implemented: AccessSizes { min: 4, max: 4, unaligned: false },
///     endianness: Endianness::Little,
/// };
/// # let _ = access;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioAccess {
    /// What guests may do. An access that is too large, or not aligned where that is
    /// needed, arrives as several valid ones. A piece below the minimum does not arrive:
    /// it reads as all ones or is dropped.
    pub valid: AccessSizes,
    /// What the handlers are called with. Larger accesses are split and put together
    /// again. For smaller ones the naturally aligned word around them is read; to write,
    /// it is read, changed and written back. A device whose reads have side effects should
    /// declare the same minimum as valid.
    pub implemented: AccessSizes,
    /// The order of a register's bytes on the bus.
    pub endianness: Endianness,
}

/// Sizes of accesses, in bytes: 1, 2, 4 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessSizes {
    /// The smallest.
    pub min: usize,
    /// The largest.
    pub max: usize,
    /// Whether an access may be at an offset that is no multiple of its size.
    pub unaligned: bool,
}

impl Default for AccessSizes {
    fn default() -> Self {
        Self { min: 1, max: 8, unaligned: true }
    }
}

impl AccessSizes {
    /// Naturally aligned accesses from `min` to `max` bytes.
    pub const fn aligned(min: usize, max: usize) -> Self {
        Self { min, max, unaligned: false }
    }

    pub(crate) fn is_possible(self) -> bool {
        let is_size = |size| matches!(size, 1 | 2 | 4 | 8);
        is_size(self.min) && is_size(self.max) && self.min <= self.max
    }

    /// The largest piece that `len` bytes at `offset` can begin with. An access that can
    /// be passed whole is; one of another length is cut at natural boundaries.
    pub(crate) fn piece(self, offset: u64, len: usize) -> usize {
        let whole = matches!(len, 1 | 2 | 4 | 8);
        let size = if len >= 8 { 8 } else { 1 << len.ilog2() };
        let size = self.max.min(size);
        if whole && self.unaligned { size } else { size.min(alignment(offset)) }
    }
}

/// The largest access size that is aligned at `offset`.
fn alignment(offset: u64) -> usize {
    1 << offset.trailing_zeros().min(3)
}

/// The order of a register's bytes on the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endianness {
    /// The least significant byte at the lowest address.
    #[default]
    Little,
    /// The most significant byte at the lowest address.
    Big,
}

impl Endianness {
    /// The value of a register from its bytes on the bus, at most 8.
    pub(crate) fn value(self, bytes: &[u8]) -> u64 {
        let add = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        match self {
            Self::Little => bytes.iter().rev().fold(0, add),
            Self::Big => bytes.iter().fold(0, add),
        }
    }

    /// The bytes on the bus of a register's value.
    pub(crate) fn bytes(self, value: u64, bytes: &mut [u8]) {
        let len = bytes.len();
        match self {
            Self::Little => bytes.copy_from_slice(&value.to_le_bytes()[..len]),
            Self::Big => bytes.copy_from_slice(&value.to_be_bytes()[8 - len..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(sizes: AccessSizes, mut offset: u64, mut len: usize) -> Vec<usize> {
        let mut pieces = Vec::new();
        while len > 0 {
            let size = sizes.piece(offset, len);
            pieces.push(size);
            offset += size as u64;
            len -= size;
        }
        pieces
    }

    #[test]
    fn odd_lengths_are_split_into_aligned_pieces() {
        let any = AccessSizes::default();
        assert_eq!(pieces(any, 0, 4), [4]);
        assert_eq!(pieces(any, 1, 2), [2]);
        assert_eq!(pieces(any, 0, 3), [2, 1]);
        assert_eq!(pieces(any, 1, 7), [1, 2, 4]);
        assert_eq!(pieces(any, 0, 20), [8, 8, 4]);
        assert_eq!(pieces(any, 3, 13), [1, 4, 8]);
    }

    #[test]
    fn pieces_are_what_the_device_takes() {
        let aligned = AccessSizes::aligned(1, 4);
        assert_eq!(pieces(aligned, 0, 8), [4, 4]);
        assert_eq!(pieces(aligned, 1, 4), [1, 2, 1]);
        assert_eq!(pieces(aligned, 6, 8), [2, 4, 2]);
        let unaligned = AccessSizes { unaligned: true, ..aligned };
        assert_eq!(pieces(unaligned, 1, 4), [4]);
        assert_eq!(pieces(AccessSizes::aligned(1, 1), 0, 4), [1, 1, 1, 1]);
    }

    #[test]
    fn bytes_and_values_are_inverse() {
        for order in [Endianness::Little, Endianness::Big] {
            for len in [1, 2, 4, 8] {
                let mut bytes = [0; 8];
                order.bytes(0x1122_3344_5566_7788, &mut bytes[..len]);
                let low = 0x1122_3344_5566_7788 & (u64::MAX >> (64 - 8 * len));
                assert_eq!(order.value(&bytes[..len]), low);
            }
        }
        assert_eq!(Endianness::Big.value(&[1, 2]), 0x0102);
        assert_eq!(Endianness::Little.value(&[1, 2]), 0x0201);
    }

    #[test]
    fn only_sizes_of_accesses_are_possible() {
        for (min, max) in [(1, 1), (1, 8), (4, 8)] {
            assert!(AccessSizes::aligned(min, max).is_possible());
        }
        for (min, max) in [(0, 4), (1, 3), (8, 4), (1, 16)] {
            assert!(!AccessSizes::aligned(min, max).is_possible());
        }
    }
}
