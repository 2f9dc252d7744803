//! A 64-bit atomic word, real or model-checked.
//!
//! [`Bitmap`](crate::bitmap::Bitmap) is written once over this trait and runs on
//! `AtomicU64` in production and on the model checker's type in its tests, so
//! that what is checked is what ships.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The operations that the bitmap's argument needs, named by what it relies on.
///
/// The `_seq_cst` operations take part in one total order with each other. A
/// `_release` store is ordered after everything before it in the same thread, and no
/// more.
pub(crate) trait Word: Send + Sync + Sized + 'static {
    fn zeroed(len: usize) -> Box<[Self]>;
    fn load_seq_cst(&self) -> u64;
    fn swap_seq_cst(&self, value: u64) -> u64;
    fn fetch_or_seq_cst(&self, bits: u64) -> u64;
    fn fetch_and_seq_cst(&self, bits: u64) -> u64;
    fn store_release(&self, value: u64);
    fn fence_seq_cst();
}

impl Word for AtomicU64 {
    fn zeroed(len: usize) -> Box<[Self]> {
        // `vec![0; len]` asks the allocator for zeroed memory, which for large
        // bitmaps is fresh from the kernel and not yet backed by pages.
        let words: Box<[u64]> = vec![0; len].into_boxed_slice();
        let words = Box::into_raw(words) as *mut [AtomicU64];
        // SAFETY: AtomicU64 has the size, alignment and bit validity of u64 on
        // 64-bit hosts, and the pointer comes from the Box consumed above, so it
        // is unique and was allocated with this very layout.
        unsafe { Box::from_raw(words) }
    }

    #[inline]
    fn load_seq_cst(&self) -> u64 {
        self.load(Ordering::SeqCst)
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
pub(crate) mod model {
    use super::Word;
    use loom::sync::atomic::{AtomicU64, Ordering, fence};

    fn fenced<T>(operation: impl FnOnce() -> T) -> T {
        fence(Ordering::SeqCst);
        let result = operation();
        fence(Ordering::SeqCst);
        result
    }

    impl Word for AtomicU64 {
        fn zeroed(len: usize) -> Box<[Self]> {
            (0..len).map(|_| AtomicU64::new(0)).collect()
        }

        fn load_seq_cst(&self) -> u64 {
            fenced(|| self.load(Ordering::Acquire))
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
pub(crate) mod interleaved {
    use super::Word;
    use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};

    impl Word for AtomicU64 {
        fn zeroed(len: usize) -> Box<[Self]> {
            (0..len).map(|_| AtomicU64::new(0)).collect()
        }

        fn load_seq_cst(&self) -> u64 {
            self.load(SeqCst)
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
