//! Which memory exists, as the kernel reports it, without touching it.
//!
//! `/proc/self/pagemap` lists the pages of this process, by the ioctl `PAGEMAP_SCAN` where the
//! kernel has it (6.7), else by an entry of 64 bits for each page (the kernel's
//! `Documentation/admin-guide/mm/pagemap.rst`). A file reports where it has data (`lseek(2)`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::page::{PageSize, index};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xc060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Of an entry of the file: in swap, or present.
const SWAPPED_OR_PRESENT: u64 = 1 << 62 | 1 << 63;

/// `struct pm_scan_arg`, which begins with its size in bytes.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// File systems, by the numbers in the kernel's `include/uapi/linux/magic.h`.
const TMPFS: u64 = 0x0102_1994;
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;

/// Regions that one call returns: 12 KiB of the stack.
const REGIONS: usize = 512;
/// Bytes of addresses that one call scans, during which the kernel keeps the process from changing
/// its mappings: a millisecond or two if all pages exist.
const SPAN: u64 = 1 << 30;
/// Entries of the file that are read at once.
const ENTRIES: usize = 4096;

/// The pages of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    process: u32,
    scans: bool,
}

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        let file = File::open("/proc/self/pagemap")?;
        Ok(Self { file, process: std::process::id(), scans: true })
    }

    /// Whether it lists this process: a child inherits the descriptor.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// As [`open`](Self::open), on a kernel that has no `PAGEMAP_SCAN`.
    #[cfg(test)]
    pub(crate) fn open_without_scan() -> io::Result<Self> {
        Ok(Self { scans: false, ..Self::open()? })
    }

    /// Appends to `found`, in order, the pages of `addresses` (whole pages of the host) that exist
    /// and are not known to be all zeros; returns up to where it has scanned.
    pub(crate) fn scan(
        &self,
        addresses: Range<u64>,
        found: &mut Vec<Range<u64>>,
    ) -> io::Result<u64> {
        let span = addresses.start..addresses.end.min(addresses.start.saturating_add(SPAN));
        if self.scans {
            match self.scan_regions(span.clone(), found) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                }
                result => return result,
            }
        }
        self.read_entries(span, found)
    }

    pub(crate) fn scan_regions(
        &self,
        span: Range<u64>,
        found: &mut Vec<Range<u64>>,
    ) -> io::Result<u64> {
        let mut regions = [Region::default(); REGIONS];
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: span.start,
            end: span.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArg::default()
        };
        // SAFETY: the kernel reads and writes `arg`, of the size that it says, and writes at
        // most `vec_len` regions at `vec`; both live during the call.
        let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        found.try_reserve(REGIONS)?;
        found.extend(regions[..count.min(REGIONS)].iter().map(|region| region.start..region.end));
        // A kernel that makes no progress would be asked for ever.
        if arg.walk_end <= span.start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(arg.walk_end.min(span.end))
    }

    fn read_entries(&self, span: Range<u64>, found: &mut Vec<Range<u64>>) -> io::Result<u64> {
        let page = PageSize::host();
        let mut entries = [0; ENTRIES * 8];
        let count = index(page.count(span.end - span.start)).min(ENTRIES);
        let entries = &mut entries[..count * 8];
        self.file.read_exact_at(entries, page.page_of(span.start) * 8)?;
        found.try_reserve(ENTRIES)?;
        let mut at = span.start;
        for entry in entries.chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            if entry & SWAPPED_OR_PRESENT != 0 {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end += page.bytes(),
                    _ => found.push(at..at + page.bytes()),
                }
            }
            at += page.bytes();
        }
        Ok(at)
    }
}

/// Whether a file reports where its data is, also data that a mapping has just written: not all
/// file systems do.
pub(crate) fn knows_its_data(file: &File) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the structure, which lives during the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call has succeeded, so it is filled.
    let stat = unsafe { stat.assume_init() };
    // C libraries do not agree on the number's type; of 32 bits it may be negative.
    #[allow(clippy::cast_sign_loss)]
    let kind = stat.f_type as u64 & u64::from(u32::MAX);
    [TMPFS, EXT4, XFS, BTRFS].contains(&kind)
}

/// The first bytes of a file in `range` (not empty) that are data, up to the next hole; `None` if
/// all of it is a hole. Bytes past the file's end count as data. Moves the descriptor's position.
pub(crate) fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, whence| {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: lseek takes numbers only.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let (start, end) = match seek(range.start, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            (file.metadata()?.len().max(range.start), range.end)
        }
        // A hole may have been punched there meanwhile.
        Ok(start) if start < range.end => (start, seek(start, libc::SEEK_HOLE)?.max(start + 1)),
        result => (result?, range.end),
    };
    Ok(Some(start..end.min(range.end)).filter(|data| !data.is_empty()))
}
