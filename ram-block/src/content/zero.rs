//! Finding pages that are zero, and zeroing bytes.

use std::ops::Range;

use crate::block::error::RamBlockError;
use crate::block::ram_block::RamBlock;
use crate::content::zero_scan;
use crate::page::{PageSize, index};

impl RamBlock {
    /// Which of the `pages` pages (up to 64) of size `page` from byte `offset` on, a multiple
    /// of that size, read as zeros: bit n is set if page n does. `page` need not be the
    /// host's page size.
    ///
    /// All pages are read, up to the first bytes that are not zero, as fast as memory can be.
    /// Reading makes the host allocate pages that a memory file does not have yet:
    /// [`data_extents`](Self::data_extents) returns where there is something to read. A concurrent
    /// store may be seen or not.
    ///
    /// ```
    /// use ram_block::{PageSize, RamBlock};
    ///
    /// let ram = RamBlock::anonymous("ram", 1 << 20)?;
    /// ram.write(0x2fff, &[1])?;
    /// assert_eq!(ram.zero_mask(0x1000, PageSize::new(4096)?, 4)?, 0b1101);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`], [`RamBlockError::Unaligned`].
    pub fn zero_mask(&self, offset: u64, page: PageSize, pages: u32) -> Result<u64, RamBlockError> {
        let len = u64::from(pages.min(64)) * page.bytes();
        let range = offset..offset.saturating_add(len);
        self.check_range(&range)?;
        if !page.is_aligned(offset) {
            let (id, page) = (self.id().to_owned(), page.bytes());
            return Err(RamBlockError::Unaligned { id, offset, len, page });
        }
        Ok(zero_scan::mask(&self.reserved(range), index(page.bytes())))
    }

    /// Makes `len` bytes from `offset` on read as zeros, and marks the pages of those that did not.
    /// Bytes without memory get none, and bytes that are zero already are not written.
    ///
    /// Unlike [`discard`](Self::discard) it takes any byte range and frees no memory. The kernel is
    /// asked for data once for a range of any size: zero neighbouring ranges together.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`].
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), RamBlockError> {
        let range = offset..offset.saturating_add(len);
        self.check_range(&range)?;
        for part in self.data_extents(range) {
            self.zero_part(part);
        }
        Ok(())
    }

    /// Zeroes bytes of the block, by pages of the host, where they are not zero.
    fn zero_part(&self, part: Range<u64>) {
        let page = PageSize::host();
        let up = |at: u64| page.count(at) * page.bytes();
        // Whole pages by masks, and the rest at both ends byte by byte.
        let whole = up(part.start)..page.page_of(part.end) * page.bytes();
        if whole.is_empty() {
            let first = up(part.start).min(part.end);
            self.zero_bytes(part.start..first);
            return self.zero_bytes(first..part.end);
        }
        self.zero_bytes(part.start..whole.start);
        let mut at = whole.start;
        while at < whole.end {
            let pages = ((whole.end - at) / page.bytes()).min(64);
            let batch = at..at + pages * page.bytes();
            let found = zero_scan::mask(&self.reserved(batch.clone()), index(page.bytes()));
            let mut left = !found & (u64::MAX >> (64 - pages));
            while left != 0 {
                let first = u64::from(left.trailing_zeros());
                let count = u64::from((left >> first).trailing_ones());
                let start = batch.start + first * page.bytes();
                self.overwrite(start..start + count * page.bytes());
                left &= !((u64::MAX >> (64 - count)) << first);
            }
            at = batch.end;
        }
        self.zero_bytes(whole.end..part.end);
    }

    /// Zeroes bytes of one page, unless they are zero.
    fn zero_bytes(&self, bytes: Range<u64>) {
        let memory = self.reserved(bytes.clone());
        let mut buffer = [0; 256];
        let mut at = 0;
        while at < memory.len() {
            let some = (memory.len() - at).min(buffer.len());
            let Some(part) = memory.part(at, some) else { return };
            part.copy_to(&mut buffer[..some]);
            if buffer[..some].iter().any(|byte| *byte != 0) {
                return self.overwrite(bytes);
            }
            at += some;
        }
    }

    /// Zeroes bytes and marks them.
    fn overwrite(&self, bytes: Range<u64>) {
        self.write_zeros(bytes.clone());
        self.dirty().mark(bytes.start, bytes.end - bytes.start);
    }
}
