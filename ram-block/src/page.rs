//! The page size as a value.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use thiserror::Error;

/// A page size was asked for that no memory can have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("Page size of {bytes} bytes: a power of two from 64 bytes to 1 GiB is needed")]
pub struct PageSizeError {
    /// The size that was asked for, in bytes.
    pub bytes: u64,
}

/// The grain of dirty tracking, in bytes: a power of two.
///
/// KVM logs in host pages, which are 4, 16 or 64 KiB depending on the host, so
/// nothing in these crates assumes one of them. Blocks that no accelerator maps may have smaller
/// ones ([`RamBlockBuilder::page_size`](crate::RamBlockBuilder::page_size)).
///
/// ```
/// use ram_block::PageSize;
///
/// let page = PageSize::new(16384)?;
/// assert_eq!(page.count(40_000), 3);
/// assert_eq!(page.pages_spanned(16_000, 1_000), 0..2);
/// # Ok::<(), ram_block::PageSizeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// A page size of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`PageSizeError`] unless `bytes` is a power of two from 64 to 2^30.
    pub const fn new(bytes: u64) -> Result<Self, PageSizeError> {
        if bytes.is_power_of_two() && bytes >= 64 && bytes <= 1 << 30 {
            // A power of two of at most 2^30 has at most 30 trailing zeros.
            #[allow(clippy::cast_possible_truncation)]
            let shift = bytes.trailing_zeros() as u8;
            Ok(Self { shift })
        } else {
            Err(PageSizeError { bytes })
        }
    }

    /// The page size of this host, the grain of KVM's dirty log; 4,096 bytes on hosts other than
    /// Linux.
    ///
    /// # Panics
    ///
    /// If the operating system reports a page size that [`PageSize::new`]
    /// refuses, which no supported one does.
    pub fn host() -> Self {
        static HOST: OnceLock<PageSize> = OnceLock::new();
        *HOST.get_or_init(|| {
            let bytes = host_page_bytes();
            Self::new(bytes).expect("the host's page size is a power of two of at least 64 bytes")
        })
    }

    /// The size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The base-2 logarithm of the size in bytes.
    #[inline]
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// Whether `offset` (bytes) is a multiple of the page size.
    #[inline]
    pub const fn is_aligned(self, offset: u64) -> bool {
        offset & (self.bytes() - 1) == 0
    }

    /// How many pages `len` bytes take, the last one perhaps in part.
    #[inline]
    pub const fn count(self, len: u64) -> u64 {
        len.div_ceil(self.bytes())
    }

    /// The number of the page that holds the byte at `offset`.
    #[inline]
    pub const fn page_of(self, offset: u64) -> u64 {
        offset >> self.shift
    }

    /// The pages that `len` bytes from `offset` span; empty when `len` is 0.
    ///
    /// A range that would pass the end of the 64-bit space ends there.
    #[inline]
    pub const fn pages_spanned(self, offset: u64, len: u64) -> Range<u64> {
        let first = self.page_of(offset);
        if len == 0 {
            return first..first;
        }
        first..self.page_of(offset.saturating_add(len - 1)) + 1
    }

    /// The bytes of `pages`; those past the end of the 64-bit space end there.
    #[inline]
    pub const fn bytes_of(self, pages: &Range<u64>) -> Range<u64> {
        pages.start.saturating_mul(self.bytes())..pages.end.saturating_mul(self.bytes())
    }
}

/// The host's page size in bytes.
#[cfg(target_os = "linux")]
fn host_page_bytes() -> u64 {
    // SAFETY: sysconf reads no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(0)
}

/// The grain of dirty tracking where no kernel logs writes: a PC's page.
#[cfg(not(target_os = "linux"))]
fn host_page_bytes() -> u64 {
    4096
}

/// Narrows an index for use with slices: lossless where addresses have 64 bits. A number that is
/// too large for 32 of them becomes one that no slice has, so that it is never mistaken for
/// another element.
#[allow(clippy::cast_possible_truncation)]
#[inline]
pub(crate) const fn index(value: u64) -> usize {
    #[cfg(not(target_pointer_width = "64"))]
    if value > usize::MAX as u64 {
        return usize::MAX;
    }
    value as usize
}

/// The number of words, or of bytes, for an allocation: an error where addresses are too short.
#[inline]
pub(crate) fn allocation(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_bounds_are_page_sizes() {
        for bytes in [0, 1, 32, 96, 4095, 4097, 6144, 1 << 31, u64::MAX] {
            assert_eq!(PageSize::new(bytes), Err(PageSizeError { bytes }));
        }
        for bytes in [64, 512, 4096, 16384, 65536, 2 << 20, 1 << 30] {
            assert_eq!(PageSize::new(bytes).map(PageSize::bytes), Ok(bytes));
        }
    }

    #[test]
    fn a_byte_range_touches_whole_pages() {
        let page = PageSize::new(4096).unwrap();
        assert_eq!(page.pages_spanned(0, 0), 0..0);
        assert_eq!(page.pages_spanned(4095, 1), 0..1);
        assert_eq!(page.pages_spanned(4095, 2), 0..2);
        assert_eq!(page.pages_spanned(8192, 4096), 2..3);
        let last = u64::MAX >> 12;
        assert_eq!(page.pages_spanned(u64::MAX, u64::MAX), last..last + 1);
    }

    #[test]
    fn the_host_page_is_one_that_linux_has() {
        assert!([4096, 16384, 65536].contains(&PageSize::host().bytes()));
    }
}
