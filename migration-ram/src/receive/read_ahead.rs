//! Reading pages of a stream straight to their places, many with one system call.
//!
//! Each page of the stream has a record's head of eight bytes before it, so where a page goes
//! is known only when it is there. Most pages come in long runs, though: behind a page at
//! `offset` follows the one at `offset + page`. So the pages that follow are read as if they
//! were those of the run, their heads into a list between them, and the heads are looked at
//! afterwards. Where one is another, all from it on is taken back into the buffer.
//!
//! What was read to a wrong place has overwritten what stood there, so only pages are read
//! ahead of whose contents nothing is lost: pages that no host memory was given to yet, which
//! are given back, or any that this stream has not brought yet, if the caller says that the
//! destination is fresh. Those are zero afterwards.

use std::ops::Range;
use std::sync::Arc;

use bitvec::vec::BitVec;
use ram_block::{PageSize, RamBlock, ReceiveList};

use crate::error::ReceiveError;
use crate::pages::holes::Holes;
use crate::wire::reader::{BUFFER, StreamReader};

/// Bytes of a record's head.
const HEAD: u64 = size_of::<Head>() as u64;
type Head = [u8; 8];
/// What is looked up at once, in bytes.
const WINDOW: u64 = 64 << 20;

/// What may be read ahead.
pub(super) struct ReadAhead {
    /// Nothing that stood in the blocks before matters.
    fresh: bool,
    block: Option<Arc<RamBlock>>,
    /// Pages of the stream that it has brought, for each block.
    brought: Vec<(Arc<RamBlock>, BitVec<u64>)>,
    /// Where the block had host memory.
    contents: Holes,
    /// The end of the last page, and how many came in a row before it.
    end: u64,
    streak: usize,
}

impl ReadAhead {
    pub(super) fn new(fresh: bool) -> Self {
        let (block, brought, contents) = (None, Vec::new(), Holes::new(WINDOW));
        Self { fresh, block, brought, contents, end: 0, streak: 0 }
    }

    /// Takes note of pages that the stream has brought.
    pub(super) fn brought(&mut self, block: &Arc<RamBlock>, bytes: Range<u64>, page: PageSize) {
        let pages = self.pages_of(block, page);
        let index = |bytes: u64| usize::try_from(page.count(bytes)).unwrap_or(usize::MAX);
        pages[index(bytes.start)..index(bytes.end)].fill(true);
    }

    fn pages_of(&mut self, block: &Arc<RamBlock>, page: PageSize) -> &mut BitVec<u64> {
        let known = self.brought.iter().position(|(known, _)| Arc::ptr_eq(known, block));
        let known = known.unwrap_or_else(|| {
            let pages = usize::try_from(page.count(block.len())).unwrap_or(usize::MAX);
            self.brought.push((block.clone(), BitVec::repeat(false, pages)));
            self.brought.len() - 1
        });
        &mut self.brought[known].1
    }

    /// Reads the page at `offset`, whose head was read, and those that follow it as far as
    /// they do; returns how many.
    pub(super) fn read(
        &mut self,
        stream: &mut StreamReader<'_>,
        block: &Arc<RamBlock>,
        offset: u64,
        page: PageSize,
        flags: u64,
    ) -> Result<u64, ReceiveError> {
        if !self.block.as_ref().is_some_and(|known| Arc::ptr_eq(known, block)) {
            self.block = Some(block.clone());
            (self.end, self.streak) = (offset, 0);
        }
        self.streak = if self.end == offset { self.streak + 1 } else { 0 };
        self.end = offset;
        loop {
            let ahead = self.free(block, self.end + page.bytes(), page);
            let pages = 1 + match stream.buffered().len() as u64 {
                // What is here already is copied: it costs least.
                buffered if buffered >= page.bytes() => 0,
                _ => ahead,
            };
            let start = self.end;
            let (read, goes_on) = if pages == 1 {
                stream.guest_memory(block, start..start + page.bytes(), "a page")?;
                (1, false)
            } else {
                let pages = pages as u64;
                let run = Run { block, offset: start, page: page.bytes(), pages, flags };
                let (read, goes_on) = run.read(stream)?;
                self.take_back(block, &run, read)?;
                self.streak += usize::try_from(read - 1).unwrap_or(0);
                if read < pages {
                    self.streak = 0;
                }
                (read, goes_on)
            };
            self.end = start + read * page.bytes();
            self.brought(block, start..self.end, page);
            if !goes_on {
                return Ok(page.count(self.end - offset));
            }
        }
    }

    /// How many pages from `start` on can be read ahead.
    fn free(&mut self, block: &Arc<RamBlock>, start: u64, page: PageSize) -> usize {
        let wanted =
            self.streak.min(BUFFER / usize::try_from(page.bytes() + HEAD).unwrap_or(1) - 1);
        if wanted == 0 || start >= block.len() {
            return 0;
        }
        // What was filled since it was looked up, this stream has brought.
        let end = match self.fresh {
            true => block.len(),
            false => self.contents.next(block, start, page.bytes()).start,
        };
        let room = page.count(end.saturating_sub(start));
        let most = wanted.min(usize::try_from(room).unwrap_or(wanted));
        let first = usize::try_from(page.count(start)).unwrap_or(usize::MAX);
        let pages = self.pages_of(block, page);
        pages[first..(first + most).min(pages.len())].leading_zeros()
    }

    /// Gives back the pages that something else was read to.
    fn take_back(&self, block: &RamBlock, run: &Run<'_>, read: u64) -> Result<(), ReceiveError> {
        let wrong = run.offset + read * run.page..run.offset + run.pages * run.page;
        if wrong.is_empty() {
            return Ok(());
        }
        let host = block.page_size();
        let len = wrong.end - wrong.start;
        let whole = host.is_aligned(wrong.start) && host.is_aligned(wrong.end);
        // Of a huge page no part can be given back.
        if self.fresh || !whole || block.discard(wrong.start, len).is_err() {
            block.zero(wrong.start, len)?;
        }
        Ok(())
    }
}

/// Pages that may follow each other in the stream, each but the first behind its head. The
/// head of whatever comes after them is read with them: to fetch it alone would bring what is
/// behind it into the buffer.
struct Run<'a> {
    block: &'a RamBlock,
    offset: u64,
    page: u64,
    pages: u64,
    /// Of their heads.
    flags: u64,
}

impl Run<'_> {
    /// Reads until all are here or one is another; says how many are, and whether the next
    /// one's head was consumed, too.
    fn read(&self, stream: &mut StreamReader<'_>) -> Result<(u64, bool), ReceiveError> {
        let step = self.page + HEAD;
        let all = self.pages * step;
        let mut heads = vec![Head::default(); usize::try_from(self.pages).unwrap_or(0)];
        let (mut done, mut checked) = (stream.take_buffered(self.block, self.offset)?, 1);
        while done < all {
            let mut list = ReceiveList::new();
            let first = usize::try_from(done / step).unwrap_or(0);
            for (n, head) in (0..self.pages).zip(&mut heads).skip(first) {
                // Behind its page: the head of the next one.
                let from = done.saturating_sub(n * step);
                let data = self.offset + n * self.page;
                if from < self.page {
                    list.push_memory(self.block, data + from..data + self.page)?;
                }
                let from = usize::try_from(from.saturating_sub(self.page)).unwrap_or(0);
                list.push_bytes(&mut head[from..]);
            }
            let got = stream.receive_list(&mut list, "a page")?;
            drop(list);
            done += got;
            while checked <= self.pages && done >= checked * step {
                let head = &heads[usize::try_from(checked - 1).unwrap_or(0)];
                if !self.is_next(checked, *head) {
                    self.unread(stream, &heads, checked, done)?;
                    return Ok((checked, false));
                }
                checked += 1;
            }
        }
        stream.advance(all);
        Ok((self.pages, true))
    }

    /// Whether it is the head of page `number` of the run, which the block has.
    fn is_next(&self, number: u64, head: Head) -> bool {
        let offset = self.offset + number * self.page;
        offset + self.page <= self.block.len() && head == (offset | self.flags).to_be_bytes()
    }

    /// Takes what was read from the head of page `first` on back into the buffer.
    fn unread(
        &self,
        stream: &mut StreamReader<'_>,
        heads: &[Head],
        first: u64,
        done: u64,
    ) -> Result<(), ReceiveError> {
        let step = self.page + HEAD;
        let start = first * step - HEAD;
        stream.advance(start);
        let mut left = usize::try_from(done - start).unwrap_or(0);
        for (n, head) in (first..).zip(&heads[usize::try_from(first - 1).unwrap_or(0)..]) {
            let part = left.min(head.len());
            stream.put_back(&head[..part]);
            left -= part;
            if left == 0 {
                break;
            }
            let part = left.min(usize::try_from(self.page).unwrap_or(0));
            stream.put_back_memory(self.block, self.offset + n * self.page, part)?;
            left -= part;
        }
        Ok(())
    }
}
