//! Where a mapping has data, as the page map of the process and the file report it.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::page::PageSize;
use crate::sys::linux::mapping::{Mapping, MappingKind};
use crate::sys::linux::pagemap::{self, Pagemap};

/// About how many parts are looked up at once.
pub(crate) const MAX_FOUND: usize = 1024;

/// The source that reports which parts of a mapping have data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Data<'a> {
    /// None: all of it counts as data.
    Unknown,
    /// The process's page tables: a page that is missing there is zero.
    Pages(&'a Pagemap),
    /// The file, from `offset` on; it includes the pages that the process has.
    File { file: &'a File, offset: u64, pagemap: Option<&'a Pagemap> },
}

impl Mapping {
    /// The source that reports which parts have data.
    pub(crate) fn data(&self) -> Data<'_> {
        let open = || Pagemap::open().inspect_err(|error| log::info!("no page map: {error}")).ok();
        let pagemap = self.pagemap.get_or_init(open).as_ref().filter(|pagemap| pagemap.is_ours());
        let reopen = |file: &File| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            File::open(path)
                .inspect_err(|error| log::info!("no second descriptor of the file: {error}"))
                .ok()
        };
        let (file, offset) = match &self.kind {
            MappingKind::Anonymous => return pagemap.map_or(Data::Unknown, Data::Pages),
            MappingKind::Memory(file) => (file, 0),
            MappingKind::Shared(file, offset) => (file, *offset),
            MappingKind::Private(_) | MappingKind::Borrowed(_) => return Data::Unknown,
        };
        let open = || Some(file).filter(|file| pagemap::knows_its_data(file)).and_then(reopen);
        match self.own_file.get_or_init(open) {
            Some(file) => Data::File { file, offset, pagemap },
            None => Data::Unknown,
        }
    }
}

/// Parts of `bytes` of a mapping, to be found.
struct Search<'a> {
    mapping: &'a Mapping,
    bytes: Range<u64>,
    /// The parts, in order.
    found: &'a mut VecDeque<Range<u64>>,
    /// Pages that this process has.
    buffer: &'a mut Vec<Range<u64>>,
}

impl Data<'_> {
    /// Adds to `found`, in order, the next parts of `bytes`, whole pages of the mapping, that have
    /// data; returns up to where these are all. `None` if that is not known. `buffer` is kept
    /// between calls.
    pub(crate) fn find(
        self,
        mapping: &Mapping,
        bytes: Range<u64>,
        found: &mut VecDeque<Range<u64>>,
        buffer: &mut Vec<Range<u64>>,
    ) -> Option<u64> {
        let mut search = Search { mapping, bytes, found, buffer };
        match self {
            Self::Unknown => None,
            Self::Pages(pagemap) => search.pages(pagemap),
            Self::File { file, offset, pagemap } => search.file_and_pages(file, offset, pagemap),
        }
    }
}

impl Search<'_> {
    /// Fills the buffer with the pages that this process has; returns up to where these are all.
    fn present(&mut self, pagemap: &Pagemap) -> Option<u64> {
        self.buffer.clear();
        let base = self.mapping.start().as_ptr() as u64;
        let result = pagemap.scan(base + self.bytes.start..base + self.bytes.end, self.buffer);
        for part in &mut *self.buffer {
            *part = part.start - base..part.end - base;
        }
        result.ok().map(|end| end - base)
    }

    fn pages(&mut self, pagemap: &Pagemap) -> Option<u64> {
        let next = self.present(pagemap)?;
        self.found.try_reserve(self.buffer.len()).ok()?;
        self.found.extend(self.buffer.drain(..));
        Some(next)
    }

    /// The pages that this process has, and in the gaps between them the data of the file: the
    /// process's pages are found faster.
    fn file_and_pages(
        &mut self,
        file: &File,
        offset: u64,
        pagemap: Option<&Pagemap>,
    ) -> Option<u64> {
        let page = PageSize::host();
        let next = pagemap.and_then(|pagemap| self.present(pagemap));
        if next.is_none() {
            self.buffer.clear();
        }
        let next = next.unwrap_or(self.bytes.end);
        let mut at = self.bytes.start;
        let stop = next..next;
        for part in self.buffer.iter().chain([&stop]) {
            while at < part.start {
                if self.found.len() >= MAX_FOUND {
                    return Some(at);
                }
                let gap = offset + at..offset + part.start;
                let Some(data) = pagemap::next_data(file, gap).ok()? else { break };
                // A file system may report units smaller than a page.
                let (start, end) = (data.start - offset, data.end - offset);
                let start = page.page_of(start) * page.bytes();
                let end = page.count(end) * page.bytes();
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
