//! Bytes that a guest or other threads access at the same time.
//!
//! No reference to them is made. Copies of a machine word or less are volatile accesses, as wide as
//! the alignment of both sides allows, so that an aligned integer is never seen in part; longer
//! ones are left to `memcpy`. A concurrent store is seen, in part seen, or not, as by another CPU.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes that others may access at any time, valid as long as `'a` lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolatileBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a AtomicU8>,
}

impl<'a> VolatileBytes<'a> {
    /// `len` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// They can be read and written as long as `'a` lasts, and all accesses to them meanwhile are
    /// volatile or atomic, or those of a guest or of another process.
    #[inline]
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, memory: PhantomData }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of the first byte; the bytes are valid as long as `'a` lasts.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// `len` bytes from byte `at` on, if there are so many.
    #[inline]
    pub(crate) fn part(&self, at: usize, len: usize) -> Option<Self> {
        at.checked_add(len).filter(|end| *end <= self.len)?;
        // SAFETY: the place lies within these bytes, or at their end.
        let start = unsafe { self.start.add(at) };
        // SAFETY: the part lies within these bytes, for which the same was promised.
        Some(unsafe { Self::new(start, len) })
    }

    /// Copies the first bytes to `buffer`, as many as both have.
    #[inline]
    pub(crate) fn copy_to(&self, buffer: &mut [u8]) {
        let len = buffer.len().min(self.len);
        // SAFETY: both sides have `len` bytes, and do not overlap: there are no references to
        // these bytes.
        unsafe { copy(self.as_ptr(), buffer.as_mut_ptr(), len) }
    }

    /// Copies `bytes` to the first bytes, as many as both have.
    #[inline]
    pub(crate) fn copy_from(&self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        // SAFETY: as above.
        unsafe { copy(bytes.as_ptr(), self.as_ptr(), len) }
    }

    /// Writes to one of each `step` bytes the value that it has.
    pub(crate) fn touch(&self, step: usize) {
        for at in (0..self.len).step_by(step) {
            // SAFETY: the byte is one of these.
            let address = unsafe { self.as_ptr().add(at) };
            // SAFETY: valid as long as `'a` lasts; others access it by atomic or volatile
            // accesses, or are guests.
            let byte = unsafe { AtomicU8::from_ptr(address) };
            // A successful exchange is a write also if it changes nothing. If it fails, another
            // thread has written.
            let value = byte.load(Ordering::Relaxed);
            let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Writes zeros over the words that are not zero; the bytes are whole words, and aligned so. A
    /// page that is zero is only read, so that no memory is allocated for it.
    pub(crate) fn zero(&self) {
        const WORD: usize = size_of::<u64>();
        assert!(self.start.addr().get() % WORD == 0 && self.len % WORD == 0, "not whole words");
        for at in (0..self.len).step_by(WORD) {
            // SAFETY: the word lies within these bytes, which are whole words.
            let address = unsafe { self.as_ptr().add(at) };
            // SAFETY: as above, aligned to a word, as was just checked; others access it by atomic
            // or volatile accesses, or are guests.
            let word = unsafe { AtomicU64::from_ptr(address.cast()) };
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Copies `len` bytes.
///
/// # Safety
///
/// `from` has so many that may be read, `to` so many that may be written, and they do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len > size_of::<usize>() {
        // SAFETY: as the caller promises.
        return unsafe { to.copy_from_nonoverlapping(from, len) };
    }
    let mut at = 0;
    while at < len {
        // The widest access that both sides are aligned to and that is not too long.
        let aligned = from.addr() | to.addr() | at;
        match len - at {
            #[cfg(target_pointer_width = "64")]
            8.. if aligned % 8 == 0 => {
                // SAFETY: the bytes are left on both sides, which are aligned.
                unsafe { copy_one::<u64>(from, to, at) };
                at += 8;
            }
            4.. if aligned % 4 == 0 => {
                // SAFETY: as above.
                unsafe { copy_one::<u32>(from, to, at) };
                at += 4;
            }
            2.. if aligned % 2 == 0 => {
                // SAFETY: as above.
                unsafe { copy_one::<u16>(from, to, at) };
                at += 2;
            }
            _ => {
                // SAFETY: as above.
                unsafe { copy_one::<u8>(from, to, at) };
                at += 1;
            }
        }
    }
}

/// Copies the integer at byte `at`, by one access to each side.
///
/// # Safety
///
/// Both sides have it, and are aligned for it.
#[inline(always)]
unsafe fn copy_one<T: Copy>(from: *const u8, to: *mut u8, at: usize) {
    let (from, to) = (from.wrapping_add(at).cast::<T>(), to.wrapping_add(at).cast::<T>());
    // SAFETY: as the caller promises; integers have no invalid bytes.
    let value = unsafe { from.read_volatile() };
    // SAFETY: as above.
    unsafe { to.write_volatile(value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each length at each alignment of both sides, and nothing around it.
    #[test]
    fn copies_are_exact_at_every_alignment() {
        #[repr(align(8))]
        struct Memory([u8; 64]);
        for (at, other, len) in (0..8)
            .flat_map(|at| (0..8).flat_map(move |other| (0..20).map(move |len| (at, other, len))))
        {
            let mut memory = Memory([0xee; 64]);
            let mut source = Memory([0; 64]);
            source.0.iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
            let start = NonNull::from(&mut memory.0).cast();
            // SAFETY: the array lives longer, and is reached through here alone meanwhile.
            let bytes = unsafe { VolatileBytes::new(start, 64) };
            let part = bytes.part(at, len).unwrap();
            part.copy_from(&source.0[other..other + len]);
            let mut back = [0; 64];
            part.copy_to(&mut back[..len]);
            assert_eq!(back[..len], source.0[other..other + len]);
            bytes.copy_to(&mut back);
            let around = back[..at].iter().chain(&back[at + len..]);
            assert!(around.into_iter().all(|byte| *byte == 0xee), "{at} {other} {len}");
            bytes.zero();
            bytes.copy_to(&mut back);
            assert_eq!(back, [0; 64]);
            assert!(bytes.part(60, 5).is_none() && bytes.part(usize::MAX, 2).is_none());
        }
    }
}
