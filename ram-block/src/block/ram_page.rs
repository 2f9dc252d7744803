//! A page of a block that is accessed many times: what a software TLB keeps.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::block::scalar::Scalar;
use crate::dirty::marks::NEVER;
use crate::dirty::memory::DirtyMemory;
use crate::page::index;

/// 2 to the power of `BITS` bytes of a block, for many accesses of one thread.
///
/// A load is one instruction of the processor, and a store one and a look at a number: as long as
/// that has not changed since the page was marked, no harvest has taken the mark, no client was
/// switched on, and no code watch has come, so that there is nothing to mark.
///
/// Offsets are bytes from the start of these. An access lies within: the upper bits of its offset
/// are ignored, and those that are not a multiple of its size. The caller has compared them.
///
/// ```
/// use ram_block::{DirtyClient, RamBlock, RamPage};
///
/// let ram = RamBlock::anonymous("ram", 16 << 20)?;
/// let log = ram.dirty().claim(DirtyClient::MIGRATION)?;
/// let mut page = RamPage::<12>::new(&ram, 0x5000)?;
/// page.store(0x10, 0x1234_5678_u32);
/// assert_eq!(page.load::<u16>(0x12), 0x1234);
/// assert!(log.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RamPage<const BITS: u32> {
    start: NonNull<u8>,
    /// The sequence as long as which stores need no mark.
    settled: u64,
    /// How many stores were marked.
    marked: u64,
    dirty: Arc<DirtyMemory>,
    block: Arc<RamBlock>,
}

// SAFETY: the memory is valid for as long as the block, which this holds, and all accesses to it
// tolerate concurrent ones.
unsafe impl<const BITS: u32> Send for RamPage<BITS> {}

impl<const BITS: u32> RamPage<BITS> {
    const LEN: usize = {
        assert!(BITS >= 4 && BITS <= 12, "from 16 bytes to the smallest page of a host");
        1 << BITS
    };

    /// The bytes from `offset` of `block` on, a multiple of their number.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`] if the block has no such bytes, and
    /// [`RamBlockError::Unaligned`].
    pub fn new(block: &Arc<RamBlock>, offset: u64) -> Result<Self, RamBlockError> {
        let len = Self::LEN as u64;
        block.check_range(&(offset..offset.saturating_add(len)))?;
        if offset % len != 0 {
            let id = block.id().to_owned();
            return Err(RamBlockError::Unaligned { id, offset, len, page: len });
        }
        // SAFETY: the offset is within the block's memory, which starts at a page of the host.
        let start = unsafe { block.mapping().start().add(index(offset)) };
        let dirty = block.dirty().clone();
        Ok(Self { start, settled: NEVER, marked: 0, dirty, block: block.clone() })
    }

    /// The block.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// How many stores were marked so far: those that came first after a harvest or the like.
    pub fn marked_stores(&self) -> u64 {
        self.marked
    }

    /// The offset in the block, in bytes.
    pub fn offset(&self) -> u64 {
        let (start, block) = (self.start.as_ptr(), self.block.mapping().start().as_ptr());
        (start.addr() - block.addr()) as u64
    }

    #[inline(always)]
    fn cell<T: Scalar>(&self, at: usize) -> &T::Atomic {
        let at = at & (Self::LEN - 1) & !(T::SIZE - 1);
        // SAFETY: the page starts at a multiple of its length in memory that is aligned to a page,
        // so `at`, a multiple of the size that is less than the length, is aligned and within. The
        // block, which this holds, keeps the memory.
        let address = unsafe { self.start.add(at) };
        // SAFETY: as above; all accesses to guest memory tolerate concurrent ones.
        unsafe { T::atomic(address) }
    }

    /// The integer at `at`, in the host's byte order.
    #[inline(always)]
    pub fn load<T: Scalar>(&self, at: usize) -> T {
        T::load(self.cell::<T>(at))
    }

    /// Stores an integer at `at`, in the host's byte order, and marks it for every client that is
    /// on.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, at: usize, value: T) {
        T::store(self.cell::<T>(at), value);
        self.stored(at, T::SIZE);
    }

    /// Replaces the integer at `at` by `new` if it is `current`, both in the host's byte order, and
    /// then marks it for every client that is on. Sequentially consistent with others of the kind.
    ///
    /// # Errors
    ///
    /// What is there instead of `current`.
    #[inline]
    pub fn compare_exchange<T: Scalar>(&mut self, at: usize, current: T, new: T) -> Result<T, T> {
        let replaced = T::compare_exchange(self.cell::<T>(at), current, new)?;
        self.stored(at, T::SIZE);
        Ok(replaced)
    }

    /// To be called after a store.
    #[inline(always)]
    fn stored(&mut self, at: usize, len: usize) {
        // The compiler must not move the store behind the look; the processor may, see
        // `DirtyMemory::settle`.
        compiler_fence(Ordering::SeqCst);
        if self.dirty.sequence() != self.settled {
            self.settle(at, len);
        }
    }

    #[cold]
    #[inline(never)]
    fn settle(&mut self, at: usize, len: usize) {
        self.marked += 1;
        let offset = self.offset() + (at & (Self::LEN - 1) & !(len - 1)) as u64;
        let settled = self.dirty.settle(offset, len as u64);
        // Where the bitmaps are finer than this, another store may be to another of their pages.
        let is_whole = self.dirty.page_size().bytes() >= Self::LEN as u64;
        self.settled = if is_whole { settled } else { NEVER };
    }
}

impl<const BITS: u32> fmt::Debug for RamPage<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, offset) = (self.block.id(), self.offset());
        f.debug_struct("RamPage").field("block", &block).field("offset", &offset).finish()
    }
}
