//! Where a block has data.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::ops::Range;

use crate::block::ram_block::RamBlock;
use crate::page::PageSize;
use crate::sys::data::Data;
use crate::sys::mapping::Mapping;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

/// The parts of a range of a block that may hold something other than zeros: what
/// [`RamBlock::data_extents`] found.
#[derive(Debug)]
pub struct DataExtents<'a> {
    mapping: &'a Mapping,
    data: Data<'a>,
    /// The requested range.
    range: Range<u64>,
    /// How far the kernel was asked; a multiple of the page size.
    at: u64,
    /// How far the kernel is to be asked; a multiple of the page size.
    end: u64,
    /// Parts that were found and not returned yet, in order.
    found: VecDeque<Range<u64>>,
    /// The last part that was found, which the next may extend.
    open: Option<Range<u64>>,
    buffer: Vec<Range<u64>>,
}

impl RamBlock {
    /// The bytes of `range` that may hold something other than zeros, as ranges in ascending order
    /// with a gap between any two. All other bytes of the range read as zeros at the time when the
    /// iterator passes them, and take no memory until they are read. Touches no memory: asks the
    /// kernel.
    ///
    /// Costs as much as there is data: a block that was never touched costs microseconds at any
    /// size, 2 GiB of 4 KiB pages 3 ms. Of anonymous memory, the pages that this process has are
    /// data; of memory files and of files on ext4, XFS, Btrfs and tmpfs, what the file system
    /// reports, which includes the writes of other processes. Of anything else (copies of files,
    /// memory of the caller), if the kernel does not answer, and on hosts other than Linux, all of
    /// the range is data. Bytes outside the block are left out.
    ///
    /// A concurrent store may be seen or not. A caller that must not miss one takes the dirty bits
    /// of the range first, then calls this, then reads: a later store sets its bit again.
    ///
    /// ```
    /// use ram_block::RamBlock;
    ///
    /// let ram = RamBlock::anonymous("ram", 1 << 30)?;
    /// ram.write(0x300_0000, b"data")?;
    /// let found: Vec<_> = ram.data_extents(0..ram.len()).collect();
    /// let bytes: u64 = found.iter().map(|part| part.end - part.start).sum();
    /// assert!(found.iter().any(|part| part.contains(&0x300_0000)));
    /// assert!(bytes <= 2 << 20); // the host may have used a huge page
    /// # Ok::<(), ram_block::RamBlockError>(())
    /// ```
    pub fn data_extents(&self, range: Range<u64>) -> DataExtents<'_> {
        let page = PageSize::host();
        let range = range.start..range.end.min(self.len());
        let (mut at, mut end) = (range.end, range.end);
        if !range.is_empty() {
            at = page.page_of(range.start) * page.bytes();
            end = page.count(range.end) * page.bytes();
        }
        let mapping = self.mapping();
        let (found, open, buffer) = (VecDeque::new(), None, Vec::new());
        DataExtents { mapping, data: mapping.data(), range, at, end, found, open, buffer }
    }
}

impl DataExtents<'_> {
    /// Asks the kernel for the next parts, and adds them to `found`.
    fn find_more(&mut self) {
        let (bytes, found) = (self.at..self.end, &mut self.found);
        let Some(next) = self.data.find(self.mapping, bytes, found, &mut self.buffer) else {
            // Without an answer, all of it counts as data.
            self.found.clear();
            self.found.push_back(self.at..self.end);
            self.at = self.end;
            return;
        };
        self.at = next;
    }
}

impl Iterator for DataExtents<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        loop {
            while let Some(part) = self.found.pop_front() {
                match &mut self.open {
                    Some(open) if open.end == part.start => open.end = part.end,
                    open => {
                        if let Some(whole) = open.replace(part) {
                            return Some(self.cut(whole));
                        }
                    }
                }
            }
            if self.at >= self.end {
                return self.open.take().map(|whole| self.cut(whole));
            }
            self.find_more();
        }
    }
}

impl FusedIterator for DataExtents<'_> {}

impl DataExtents<'_> {
    /// Cuts a part to the requested range.
    fn cut(&self, part: Range<u64>) -> Range<u64> {
        part.start.max(self.range.start)..part.end.min(self.range.end)
    }
}
