//! Reads pages of a stream straight into guest memory, many with one system call.
//!
//! Each page of the stream follows a record's head of eight bytes, so the offset of a page is
//! known only after its head was read. Most pages are in long runs, though: the page at `offset`
//! is followed by the one at `offset + page`. So the reader guesses that the run goes on: it
//! reads the following pages into the places of the run, their heads into a list between them,
//! and checks the heads afterwards. From the first head that differs on, it moves all bytes back
//! into the buffer.
//!
//! A wrong guess has overwritten the memory at that place. So pages are read ahead only where no
//! contents can be lost: into holes, which are discarded again, or, with
//! `Receiver::discard_contents`, into any page that this stream has not sent yet, which is zeroed
//! again.

use std::ops::Range;
use std::sync::Arc;

use ram_block::{DirtyError, PageSet, PageSize, RamBlock, ReceiveList};

use crate::error::ReceiveError;
use crate::pages::holes::Holes;
use crate::wire::format::index;
use crate::wire::reader::{BUFFER, StreamReader};

/// Bytes of a record's head.
const HEAD: u64 = size_of::<Head>() as u64;
type Head = [u8; 8];
/// Bytes that one lookup of holes covers at most.
const WINDOW: u64 = 64 << 20;

/// Decides which pages may be read ahead, and reads them.
pub(super) struct ReadAhead {
    /// Whether the former contents of the blocks may be discarded.
    fresh: bool,
    block: Option<Arc<RamBlock>>,
    /// The pages of each block that were received from the stream.
    received: Vec<(Arc<RamBlock>, PageSet)>,
    /// The holes of the block.
    contents: Holes,
    /// The end of the last page, and how many pages in a row it ended.
    end: u64,
    run_length: usize,
}

impl ReadAhead {
    pub(super) fn new(fresh: bool) -> Self {
        let (block, received, contents) = (None, Vec::new(), Holes::new(WINDOW));
        Self { fresh, block, received, contents, end: 0, run_length: 0 }
    }

    /// Records pages that were received from the stream.
    pub(super) fn received(
        &mut self,
        block: &Arc<RamBlock>,
        bytes: Range<u64>,
        page: PageSize,
    ) -> Result<(), ReceiveError> {
        self.pages_of(block, page)?.insert(page.count(bytes.start)..page.count(bytes.end));
        Ok(())
    }

    fn pages_of(
        &mut self,
        block: &Arc<RamBlock>,
        page: PageSize,
    ) -> Result<&mut PageSet, ReceiveError> {
        let known = self.received.iter().position(|(known, _)| Arc::ptr_eq(known, block));
        let known = match known {
            Some(known) => known,
            None => {
                let pages = page.count(block.max_len());
                let set = PageSet::new(pages)
                    .map_err(|error| DirtyError::NoMemory { pages, kind: error.kind() })?;
                self.received.push((block.clone(), set));
                self.received.len() - 1
            }
        };
        Ok(&mut self.received[known].1)
    }

    /// Reads the page at `offset`, whose head was read, and the pages of the same run that follow
    /// it; returns how many pages it read.
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
            (self.end, self.run_length) = (offset, 0);
        }
        self.run_length = if self.end == offset { self.run_length + 1 } else { 0 };
        self.end = offset;
        loop {
            let ahead = self.free(block, self.end + page.bytes(), page)?;
            let pages = 1 + match stream.buffered().len() as u64 {
                // A page that is buffered already is copied: cheaper than a system call.
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
                self.run_length += index(read - 1);
                if read < pages {
                    // The guess was wrong: read no pages ahead before a new run shows.
                    self.run_length = 0;
                }
                (read, goes_on)
            };
            self.end = start + read * page.bytes();
            self.received(block, start..self.end, page)?;
            if !goes_on {
                return Ok(page.count(self.end - offset));
            }
        }
    }

    /// How many pages from `start` on can be read ahead.
    fn free(
        &mut self,
        block: &Arc<RamBlock>,
        start: u64,
        page: PageSize,
    ) -> Result<usize, ReceiveError> {
        let wanted = self.run_length.min(BUFFER / index(page.bytes() + HEAD) - 1);
        if wanted == 0 || start >= block.len() {
            return Ok(0);
        }
        // The cache may be stale, but only this stream fills the holes, and the pages that it has
        // filled are in `received`, which is checked below.
        let end = match self.fresh {
            true => block.len(),
            false => self.contents.next(block, start, page.bytes()).start,
        };
        let most = wanted.min(index(page.count(end.saturating_sub(start))));
        let first = page.count(start);
        let received = self.pages_of(block, page)?;
        let free = (first..).take(most).take_while(|&page| !received.contains(page));
        Ok(free.count())
    }

    /// Discards or zeroes the pages that were overwritten by a wrong guess.
    fn take_back(
        &self,
        block: &Arc<RamBlock>,
        run: &Run<'_>,
        read: u64,
    ) -> Result<(), ReceiveError> {
        let wrong = run.offset + read * run.page..run.offset + run.pages * run.page;
        if wrong.is_empty() {
            return Ok(());
        }
        let host = block.page_size();
        let len = wrong.end - wrong.start;
        let whole = host.is_aligned(wrong.start) && host.is_aligned(wrong.end);
        // A part of a huge page cannot be discarded.
        if self.fresh || !whole || block.discard(wrong.start, len).is_err() {
            block.zero(wrong.start, len)?;
        }
        Ok(())
    }
}

/// Pages that are expected to follow each other in the stream, each but the first after its head.
/// The head after the last page is read with them: reading it later would read the bytes after
/// it into the buffer, too.
struct Run<'a> {
    block: &'a Arc<RamBlock>,
    offset: u64,
    page: u64,
    pages: u64,
    /// The flags in their heads.
    flags: u64,
}

impl Run<'_> {
    /// Reads until all pages are received, or a head differs from the expected one. Returns how
    /// many pages belong to the run, and whether the head after them was consumed, as it
    /// continues the run.
    fn read(&self, stream: &mut StreamReader<'_>) -> Result<(u64, bool), ReceiveError> {
        let step = self.page + HEAD;
        let all = self.pages * step;
        let mut heads = vec![Head::default(); index(self.pages)];
        let (mut done, mut checked) = (stream.take_buffered(self.block, self.offset)?, 1);
        while done < all {
            let mut list = ReceiveList::new();
            let first = index(done / step);
            for (n, head) in (0..self.pages).zip(&mut heads).skip(first) {
                // After its page: the head of the next one.
                let from = done.saturating_sub(n * step);
                let data = self.offset + n * self.page;
                if from < self.page {
                    list.push_memory(self.block, data + from..data + self.page)?;
                }
                let from = index(from.saturating_sub(self.page));
                list.push_bytes(&mut head[from..]);
            }
            let got = stream.receive_list(&mut list, "a page")?;
            drop(list);
            done += got;
            while checked <= self.pages && done >= checked * step {
                let head = &heads[index(checked - 1)];
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

    /// Whether `head` is that of page `number` of the run, and the page lies in the block.
    fn is_next(&self, number: u64, head: Head) -> bool {
        let offset = self.offset + number * self.page;
        offset + self.page <= self.block.len() && head == (offset | self.flags).to_be_bytes()
    }

    /// Moves all bytes from the head of page `first` on back into the buffer.
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
        let mut left = index(done - start);
        for (n, head) in (first..).zip(&heads[index(first - 1)..]) {
            let part = left.min(head.len());
            stream.put_back(&head[..part]);
            left -= part;
            if left == 0 {
                break;
            }
            let part = left.min(index(self.page));
            stream.put_back_memory(self.block, self.offset + n * self.page, part)?;
            left -= part;
        }
        Ok(())
    }
}
