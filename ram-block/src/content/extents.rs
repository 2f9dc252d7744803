//! Where a block has data.

use std::collections::VecDeque;
use std::fs::File;
use std::iter::FusedIterator;
use std::ops::Range;

use crate::block::ram_block::RamBlock;
use crate::page::PageSize;
use crate::sys::mapping::{Data, Mapping};
use crate::sys::pagemap::{self, Pagemap};

#[cfg(test)]
mod tests;

/// Parts that are looked for at once, about.
const MOST: usize = 1024;

/// The parts of a range of a block that may hold something other than zeros: what
/// [`RamBlock::data_extents`] found.
#[derive(Debug)]
pub struct DataExtents<'a> {
    mapping: &'a Mapping,
    page: PageSize,
    data: Data<'a>,
    /// What is asked for.
    range: Range<u64>,
    /// Up to where was looked; whole pages.
    at: u64,
    /// Up to where to look; whole pages.
    end: u64,
    /// What was found there and not yet returned, in order.
    found: VecDeque<Range<u64>>,
    /// The last one found, which the next may continue.
    open: Option<Range<u64>>,
    buffer: Vec<Range<u64>>,
}

impl RamBlock {
    /// The bytes of `range` that may hold something other than zeros, as ranges in ascending
    /// order with something between them. All other bytes of the range read as zeros at the
    /// time when the iterator passes them, and take no memory that reading them would not
    /// take first. Nothing is touched: the kernel is asked.
    ///
    /// Costs what is there: a block that was never touched costs microseconds at any size, 2
    /// GiB of 4 KiB pages 3 ms. Of anonymous memory, what this process has pages for is data;
    /// of memory files and of files on ext4, XFS, Btrfs and tmpfs what the file has, so that
    /// what other processes wrote is included. Of anything else (copies of files, memory of
    /// the caller), and where the kernel does not answer, all of the range is. What lies
    /// outside the block is left out.
    ///
    /// A store that is made meanwhile may be seen or not. Who needs it takes the dirty bits of
    /// the range first, then asks, then reads: a later store sets its bit again.
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
        let page = self.page_size();
        let range = range.start..range.end.min(self.len());
        let (mut at, mut end) = (range.end, range.end);
        if !range.is_empty() {
            at = page.page_of(range.start) * page.bytes();
            end = page.count(range.end) * page.bytes();
        }
        let mapping = self.mapping();
        let (found, open, buffer) = (VecDeque::new(), None, Vec::new());
        DataExtents { mapping, page, data: mapping.data(), range, at, end, found, open, buffer }
    }
}

impl DataExtents<'_> {
    /// Looks on, and puts what it finds in `found`.
    fn look(&mut self) {
        let next = match self.data {
            Data::Unknown => None,
            Data::Pages(pagemap) => self.pages(pagemap),
            Data::File { file, offset, pagemap } => self.file_and_pages(file, offset, pagemap),
        };
        let Some(next) = next else {
            // Who does not know says that all is data.
            self.found.clear();
            self.found.push_back(self.at..self.end);
            self.at = self.end;
            return;
        };
        self.at = next;
    }

    /// The pages from `at` on that this process has, in the buffer, and up to where these are
    /// all.
    fn present(&mut self, pagemap: &Pagemap) -> Option<u64> {
        self.buffer.clear();
        let base = self.mapping.start().as_ptr() as u64;
        let result = pagemap.scan(base + self.at..base + self.end, &mut self.buffer);
        for part in &mut self.buffer {
            *part = part.start - base..part.end - base;
        }
        result.ok().map(|end| end - base)
    }

    fn pages(&mut self, pagemap: &Pagemap) -> Option<u64> {
        let next = self.present(pagemap)?;
        self.found.extend(self.buffer.drain(..));
        Some(next)
    }

    /// What this process has pages for, and between these what the file has: the process's
    /// pages are found faster.
    fn file_and_pages(
        &mut self,
        file: &File,
        offset: u64,
        pagemap: Option<&Pagemap>,
    ) -> Option<u64> {
        let next = pagemap.and_then(|pagemap| self.present(pagemap));
        if next.is_none() {
            self.buffer.clear();
        }
        let next = next.unwrap_or(self.end);
        let mut at = self.at;
        let stop = next..next;
        for part in self.buffer.iter().chain([&stop]) {
            while at < part.start {
                if self.found.len() >= MOST {
                    return Some(at);
                }
                let gap = offset + at..offset + part.start;
                let Some(data) = pagemap::next_data(file, gap).ok()? else { break };
                // A file system may tell of units smaller than a page.
                let (start, end) = (data.start - offset, data.end - offset);
                let start = self.page.page_of(start) * self.page.bytes();
                let end = self.page.count(end) * self.page.bytes();
                self.found.push_back(start.max(at)..end.min(part.start));
                at = end;
            }
            if !part.is_empty() {
                self.found.push_back(part.clone());
            }
            at = part.end;
        }
        Some(next)
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
            self.look();
        }
    }
}

impl FusedIterator for DataExtents<'_> {}

impl DataExtents<'_> {
    /// Without what was not asked for.
    fn cut(&self, part: Range<u64>) -> Range<u64> {
        part.start.max(self.range.start)..part.end.min(self.range.end)
    }
}
