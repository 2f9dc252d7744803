//! A 64-bit atomic word, real or model-checked.
//!
//! [`Bitmap`](crate::bitmap::atomic::Bitmap) is written once over this trait and runs on
//! `AtomicU64` in production and on the model checker's type in its tests, so
//! that what is checked is what ships.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::bitmap::simd;
use crate::sys::mapping::Mapping;

/// The operations that the bitmap uses, named by the ordering that its argument relies on.
///
/// The `_seq_cst` operations take part in one total order with each other. A `_release` store is
/// ordered after everything before it in the same thread, an `_acquire` load before everything
/// after it, and no more.
pub(crate) trait Word: Send + Sync + Sized + 'static {
    /// Words at a fixed address.
    type Array: Deref<Target = [Self]> + Send + Sync;

    /// `len` zero words that take no memory until they are touched.
    fn zeroed(len: usize) -> io::Result<Self::Array>;
    /// Zeroes all words and frees their memory.
    ///
    /// Unordered, and not an access of any thread: a concurrent write to a word may survive or not.
    fn reset(words: &Self::Array);
    fn new(value: u64) -> Self;
    fn load_acquire(&self) -> u64;
    fn load_seq_cst(&self) -> u64;
    fn fetch_add_seq_cst(&self, value: u64) -> u64;
    fn swap_seq_cst(&self, value: u64) -> u64;
    fn fetch_or_seq_cst(&self, bits: u64) -> u64;
    fn fetch_and_seq_cst(&self, bits: u64) -> u64;
    fn store_release(&self, value: u64);
    /// Stores all ones to all words, in any order.
    fn fill_release(words: &[Self]) {
        words.iter().for_each(|word| word.store_release(u64::MAX));
    }
    fn fence_seq_cst();
}

/// Words in a mapping of their own: zero without being written, whichever allocator the program
/// uses, and their memory can be freed while the mapping stays.
pub(crate) struct Mapped {
    memory: Mapping,
    len: usize,
}

impl Mapped {
    /// `len` zero words.
    fn new(len: usize) -> io::Result<Self> {
        let bytes = len.max(1).checked_mul(size_of::<u64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Mapping::anonymous(bytes)?, len })
    }
}

impl Deref for Mapped {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `len` words, is aligned to a page, lives as long as
        // `self`, starts zero (a valid AtomicU64), and is reached through here alone.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr().cast(), self.len) }
    }
}

/// Words as those of [`Mapped`], to which there are no other references: plain, not atomic.
pub(crate) struct Owned(Mapped);

impl Owned {
    /// `len` zero words that take no memory until they are touched.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        Mapped::new(len).map(Self)
    }
}

impl Deref for Owned {
    type Target = [u64];

    #[inline]
    fn deref(&self) -> &[u64] {
        let Mapped { memory, len } = &self.0;
        // SAFETY: the mapping holds `len` words, is aligned to a page, lives as long as
        // `self`, starts zero (a valid u64), and is reached by borrows of `self` alone.
        unsafe { std::slice::from_raw_parts(memory.start().as_ptr().cast(), *len) }
    }
}

impl DerefMut for Owned {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u64] {
        let Mapped { memory, len } = &self.0;
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(memory.start().as_ptr().cast(), *len) }
    }
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("len", &self.0.len).finish_non_exhaustive()
    }
}

impl Word for AtomicU64 {
    type Array = Mapped;

    fn zeroed(len: usize) -> io::Result<Mapped> {
        Mapped::new(len)
    }

    fn reset(words: &Mapped) {
        // Private anonymous memory reads as zeros after this. The words are atomics, so that a
        // concurrent access finds either value.
        if let Err(error) = words.memory.discard(0..words.memory.len()) {
            // `discard` zeroes memory that the kernel does not free, so this is no longer our
            // mapping.
            log::error!("a bitmap's memory is not reset: {error}");
        }
    }

    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn load_acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline]
    fn load_seq_cst(&self) -> u64 {
        self.load(Ordering::SeqCst)
    }

    #[inline]
    fn fetch_add_seq_cst(&self, value: u64) -> u64 {
        self.fetch_add(value, Ordering::SeqCst)
    }

    #[inline]
    fn swap_seq_cst(&self, value: u64) -> u64 {
        self.swap(value, Ordering::SeqCst)
    }

    #[inline]
    fn fetch_or_seq_cst(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::SeqCst)
    }

    #[inline]
    fn fetch_and_seq_cst(&self, bits: u64) -> u64 {
        self.fetch_and(bits, Ordering::SeqCst)
    }

    #[inline]
    fn store_release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    #[inline]
    fn fill_release(words: &[Self]) {
        simd::fill_release(words);
    }

    #[inline]
    fn fence_seq_cst() {
        fence(Ordering::SeqCst);
    }
}

/// The model checker's word.
///
/// It treats sequentially consistent *accesses* as acquire-release but models
/// sequentially consistent *fences* in full, so each `_seq_cst` operation is
/// written as the access between two such fences.
#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
pub(crate) mod model {
    use super::{Word, io};
    use loom::sync::atomic::{AtomicU64, Ordering, fence};

    fn fenced<T>(operation: impl FnOnce() -> T) -> T {
        fence(Ordering::SeqCst);
        let result = operation();
        fence(Ordering::SeqCst);
        result
    }

    impl Word for AtomicU64 {
        type Array = Box<[Self]>;

        fn zeroed(len: usize) -> io::Result<Box<[Self]>> {
            Ok((0..len).map(|_| AtomicU64::new(0)).collect())
        }

        fn reset(words: &Box<[Self]>) {
            words.iter().for_each(|word| word.store_release(0));
        }

        fn new(value: u64) -> Self {
            Self::new(value)
        }

        fn load_acquire(&self) -> u64 {
            self.load(Ordering::Acquire)
        }

        fn load_seq_cst(&self) -> u64 {
            fenced(|| self.load(Ordering::Acquire))
        }

        fn fetch_add_seq_cst(&self, value: u64) -> u64 {
            fenced(|| self.fetch_add(value, Ordering::AcqRel))
        }

        fn swap_seq_cst(&self, value: u64) -> u64 {
            fenced(|| self.swap(value, Ordering::AcqRel))
        }

        fn fetch_or_seq_cst(&self, bits: u64) -> u64 {
            fenced(|| self.fetch_or(bits, Ordering::AcqRel))
        }

        fn fetch_and_seq_cst(&self, bits: u64) -> u64 {
            fenced(|| self.fetch_and(bits, Ordering::AcqRel))
        }

        fn store_release(&self, value: u64) {
            // The checker orders a store and a concurrent read-modify-write only
            // in part and lets the latter overwrite the former unread, which
            // their atomicity forbids: a false alarm. A swap that does not
            // acquire avoids it; the store itself is checked with shuttle.
            self.swap(value, Ordering::Release);
        }

        fn fence_seq_cst() {
            fence(Ordering::SeqCst);
        }
    }
}

/// The word of the second checker, which explores all interleavings but takes
/// every access as sequentially consistent.
#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
pub(crate) mod interleaved {
    use super::{Word, io};
    use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};

    impl Word for AtomicU64 {
        type Array = Box<[Self]>;

        fn zeroed(len: usize) -> io::Result<Box<[Self]>> {
            Ok((0..len).map(|_| AtomicU64::new(0)).collect())
        }

        fn reset(words: &Box<[Self]>) {
            words.iter().for_each(|word| word.store_release(0));
        }

        fn new(value: u64) -> Self {
            Self::new(value)
        }

        fn load_acquire(&self) -> u64 {
            self.load(SeqCst)
        }

        fn load_seq_cst(&self) -> u64 {
            self.load(SeqCst)
        }

        fn fetch_add_seq_cst(&self, value: u64) -> u64 {
            self.fetch_add(value, SeqCst)
        }

        fn swap_seq_cst(&self, value: u64) -> u64 {
            self.swap(value, SeqCst)
        }

        fn fetch_or_seq_cst(&self, bits: u64) -> u64 {
            self.fetch_or(bits, SeqCst)
        }

        fn fetch_and_seq_cst(&self, bits: u64) -> u64 {
            self.fetch_and(bits, SeqCst)
        }

        fn store_release(&self, value: u64) {
            self.store(value, SeqCst);
        }

        fn fence_seq_cst() {}
    }
}
