//! The integers that an access of a processor moves.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

mod sealed {
    pub trait Sealed {}
}

/// An integer of 1, 2, 4 or 8 bytes, as one access of a processor moves it.
pub trait Scalar: sealed::Sealed + Copy + Default + 'static {
    /// The atomic of the same size.
    type Atomic: 'static;

    /// How many bytes it has.
    const SIZE: usize = size_of::<Self>();

    /// The bytes in the order of the host, and zeros after them.
    fn to_bytes(self) -> [u8; 8];

    /// The integer of the first [`SIZE`](Self::SIZE) bytes, in the order of the host.
    fn from_bytes(bytes: [u8; 8]) -> Self;

    /// From the host's byte order to little-endian, or back.
    #[must_use]
    fn little_endian(self) -> Self;

    /// From the host's byte order to big-endian, or back.
    #[must_use]
    fn big_endian(self) -> Self;

    #[doc(hidden)]
    fn load(cell: &Self::Atomic) -> Self;

    #[doc(hidden)]
    fn store(cell: &Self::Atomic, value: Self);

    #[doc(hidden)]
    fn compare_exchange(cell: &Self::Atomic, current: Self, new: Self) -> Result<Self, Self>;

    /// The bytes at `address` as an atomic.
    ///
    /// # Safety
    ///
    /// The address is a multiple of [`SIZE`](Self::SIZE), has that many bytes as long as `'a`
    /// lasts, and all accesses to them tolerate concurrent ones.
    #[doc(hidden)]
    unsafe fn atomic<'a>(address: NonNull<u8>) -> &'a Self::Atomic;
}

macro_rules! scalars {
    ($($integer:ty, $atomic:ty;)*) => {$(
        impl sealed::Sealed for $integer {}

        impl Scalar for $integer {
            type Atomic = $atomic;

            #[inline]
            fn to_bytes(self) -> [u8; 8] {
                let mut bytes = [0; 8];
                bytes[..Self::SIZE].copy_from_slice(&self.to_ne_bytes());
                bytes
            }

            #[inline]
            fn from_bytes(bytes: [u8; 8]) -> Self {
                let mut own = [0; Self::SIZE];
                own.copy_from_slice(&bytes[..Self::SIZE]);
                Self::from_ne_bytes(own)
            }

            #[inline]
            fn little_endian(self) -> Self {
                self.to_le()
            }

            #[inline]
            fn big_endian(self) -> Self {
                self.to_be()
            }

            #[inline(always)]
            fn load(cell: &$atomic) -> Self {
                cell.load(Ordering::Relaxed)
            }

            #[inline(always)]
            fn store(cell: &$atomic, value: Self) {
                cell.store(value, Ordering::Relaxed);
            }

            #[inline]
            fn compare_exchange(cell: &$atomic, current: Self, new: Self) -> Result<Self, Self> {
                cell.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            }

            #[inline(always)]
            unsafe fn atomic<'a>(address: NonNull<u8>) -> &'a $atomic {
                // SAFETY: as the caller promises; the atomic is as large and as aligned as the
                // integer's size.
                unsafe { address.cast().as_ref() }
            }
        }
    )*};
}

scalars! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}
