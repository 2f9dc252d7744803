//! Mapping and unmapping host memory.
#![allow(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, OnceLock};

use crate::page::PageSize;
use crate::sys::huge_pages::HugePages;
use crate::sys::linux::holes::Holes;
use crate::sys::linux::pagemap::Pagemap;
use crate::sys::volatile::VolatileBytes;

/// Whether files can be mapped, and memory files made.
pub(crate) const MAPS_FILES: bool = true;

/// Bytes of the huge pages that are asked for: what x86-64 and Arm (of 4 KiB pages) have.
pub(crate) const HUGE: usize = 2 << 20;

/// The system call's own error, if it returned one.
pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks the kernel to back `words` with huge pages where they are touched: reads of a bitmap at
/// scattered places are bound by address translation otherwise. Small arrays are left alone, and a
/// refusal costs speed only.
pub(crate) fn prefer_huge_pages(words: &mut [u64]) {
    let start = (words.as_mut_ptr() as usize).next_multiple_of(HUGE);
    let end = (words.as_ptr_range().end as usize) & !(HUGE - 1);
    if start < end && end - start >= 2 * HUGE {
        // SAFETY: the range lies within `words`, which is borrowed exclusively, and the
        // advice changes no contents.
        let result =
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        if let Err(error) = check(result) {
            log::debug!("no huge pages for a bitmap: {error}");
        }
    }
}

/// What backs a mapping.
#[derive(Debug)]
pub(super) enum MappingKind {
    Anonymous,
    /// A memory file of our own.
    Memory(File),
    /// The file, and where in it the mapping begins; writes go to the file.
    Shared(File, u64),
    /// A private mapping of a file, whose pages are copied as they are written, and its discarded
    /// parts.
    Private(Mutex<Holes>),
    /// Memory of the caller, and the owner that keeps it alive.
    Borrowed(#[allow(dead_code)] Box<dyn Any + Send + Sync>),
}

/// A readable and writable mapping.
///
/// Invariant: `start` is the start of a mapping of `len` bytes, which lives until
/// the value is dropped. Unless it is borrowed, nothing else unmaps or remaps it.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
    pub(super) kind: MappingKind,
    pub(super) huge: HugePages,
    /// To query the mapping's pages; opened on first use.
    pub(super) pagemap: OnceLock<Option<Pagemap>>,
    /// A second descriptor of the file, with a position of its own; opened on first use.
    pub(super) own_file: OnceLock<Option<File>>,
}

// SAFETY: the mapping is plain memory without thread affinity, and the methods
// that reach it (through `block`) use accesses that tolerate concurrent ones.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A memory file of `len` bytes, sealed: no holder of its descriptor can change its length.
fn memory_file(len: usize, flags: libc::c_uint) -> io::Result<File> {
    let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"ram-block".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl takes numbers only here.
    check(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

impl Mapping {
    /// Private, zero, not yet populated memory of `len` bytes (non-zero).
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, MappingKind::Anonymous, HugePages::Default)
    }

    /// As [`anonymous`](Self::anonymous), with the requested huge pages if there are such.
    pub(crate) fn anonymous_of(len: usize, huge: HugePages) -> io::Result<Self> {
        from_the_pool(len, huge, || Self::map(len, MappingKind::Anonymous, HugePages::Pool))
            .unwrap_or_else(|| Self::map(len, MappingKind::Anonymous, or_transparent(huge)))
    }

    /// Memory of `len` bytes (non-zero) in a memory file, which another process can
    /// map by its descriptor; zero and not yet populated.
    pub(crate) fn memfd(len: usize, huge: HugePages) -> io::Result<Self> {
        let pool = || {
            let file = memory_file(len, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?;
            Self::map(len, MappingKind::Memory(file), HugePages::Pool)
        };
        from_the_pool(len, huge, pool).unwrap_or_else(|| {
            let file = memory_file(len, 0)?;
            Self::map(len, MappingKind::Memory(file), or_transparent(huge))
        })
    }

    /// `len` bytes of `file` from `offset` on, page-aligned; writes go to the file.
    pub(crate) fn file(file: File, offset: u64, len: usize, huge: HugePages) -> io::Result<Self> {
        Self::map(len, MappingKind::Shared(file, offset), or_transparent(huge))
    }

    /// As [`file`](Self::file), but writes stay out of the file.
    pub(crate) fn file_private(
        file: &File,
        offset: u64,
        len: usize,
        huge: HugePages,
    ) -> io::Result<Self> {
        Self::map_fd(
            len,
            file.as_raw_fd(),
            offset,
            MappingKind::Private(Mutex::default()),
            or_transparent(huge),
        )
    }

    /// The caller's memory, kept alive by `owner`.
    ///
    /// # Safety
    ///
    /// From `start`, `len` bytes are mapped readable and writable until `owner` is dropped, and all
    /// accesses to them meanwhile are volatile or atomic, or those of a guest or of another
    /// process.
    pub(crate) unsafe fn from_raw(
        start: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self::new(start, len, MappingKind::Borrowed(owner), HugePages::Default)
    }

    fn new(start: NonNull<u8>, len: usize, kind: MappingKind, huge: HugePages) -> Self {
        let (pagemap, own_file) = (OnceLock::new(), OnceLock::new());
        Self { start, len, kind, huge, pagemap, own_file }
    }

    fn map(len: usize, kind: MappingKind, huge: HugePages) -> io::Result<Self> {
        let (fd, offset) = match &kind {
            MappingKind::Memory(file) => (file.as_raw_fd(), 0),
            MappingKind::Shared(file, offset) => (file.as_raw_fd(), *offset),
            _ => (-1, 0),
        };
        Self::map_fd(len, fd, offset, kind, huge)
    }

    fn map_fd(
        len: usize,
        fd: libc::c_int,
        offset: u64,
        kind: MappingKind,
        huge: HugePages,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut flags = match kind {
            MappingKind::Memory(_) | MappingKind::Shared(..) => libc::MAP_SHARED,
            MappingKind::Private(_) => libc::MAP_PRIVATE,
            _ => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        match (huge, &kind) {
            (HugePages::Pool, MappingKind::Anonymous) => {
                flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
            }
            // Reserved, so that a guest's access finds the page.
            (HugePages::Pool, _) => {}
            _ => flags |= libc::MAP_NORESERVE,
        }
        // A guest gets huge mappings only where its address and the host's are equal
        // modulo the huge page.
        let place =
            if huge == HugePages::Transparent { Some(Reservation::reserve(len)?) } else { None };
        let at = place.as_ref().map_or(ptr::null_mut(), |place| place.aligned);
        if place.is_some() {
            flags |= libc::MAP_FIXED;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses a free place, with it the place
        // is one that was just reserved and holds nothing, so no memory in use changes.
        let start = unsafe { libc::mmap(at, len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // The kernel may have unmapped the place before it failed, and another thread may have
            // mapped something there by now: leave it alone.
            if let Some(place) = place {
                place.release_around(len);
            }
            return Err(error);
        }
        if let Some(place) = place {
            place.release_around(len);
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut mapping = Self::new(start, len, kind, huge);
        if huge == HugePages::Transparent {
            // SAFETY: the range is our own mapping, and the advice changes no contents.
            let result = unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
            if let Err(error) = check(result) {
                log::info!("no transparent huge pages: {error}");
                mapping.huge = HugePages::Default;
            }
        }
        Ok(mapping)
    }

    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the mapping, cut to what there is.
    #[inline]
    pub(crate) fn bytes(&self, range: Range<usize>) -> VolatileBytes<'_> {
        let (start, end) = (range.start.min(self.len), range.end.min(self.len));
        // SAFETY: the place lies within the mapping, or at its end.
        let address = unsafe { self.start.add(start) };
        // SAFETY: the mapping is valid for its length, within which the range lies, as long as
        // `self` lives, and all accesses to it tolerate concurrent ones.
        unsafe { VolatileBytes::new(address, end.saturating_sub(start)) }
    }

    pub(crate) fn huge_pages(&self) -> HugePages {
        self.huge
    }

    /// Whether memory of the mapping can vanish: a file that is not ours can be truncated.
    pub(crate) fn may_vanish(&self) -> bool {
        matches!(self.kind, MappingKind::Shared(..) | MappingKind::Private(_))
    }

    /// The file that the memory is shared through.
    pub(crate) fn shared_file(&self) -> Option<&File> {
        match &self.kind {
            MappingKind::Memory(file) | MappingKind::Shared(file, _) => Some(file),
            _ => None,
        }
    }

    /// Where in its file the memory begins, in bytes.
    pub(crate) fn file_offset(&self) -> u64 {
        match &self.kind {
            MappingKind::Shared(_, offset) => *offset,
            _ => 0,
        }
    }
}

/// A mapping from the pool; `None` if the pool is not asked for, or has too few pages.
fn from_the_pool(
    len: usize,
    huge: HugePages,
    map: impl FnOnce() -> io::Result<Mapping>,
) -> Option<io::Result<Mapping>> {
    if huge != HugePages::Pool {
        return None;
    }
    let mapping = if len % HUGE == 0 {
        map()
    } else {
        Err(io::Error::other(format!("{len} bytes are no multiple of {HUGE}")))
    };
    match mapping {
        Ok(mapping) => Some(Ok(mapping)),
        Err(error) => {
            log::info!("no huge pages from the pool, transparent ones instead: {error}");
            None
        }
    }
}

/// The pages to ask for if the pool has none.
fn or_transparent(huge: HugePages) -> HugePages {
    if huge == HugePages::Pool { HugePages::Transparent } else { huge }
}

/// Reserved addresses that contain a start aligned to a huge page.
struct Reservation {
    start: *mut libc::c_void,
    len: usize,
    aligned: *mut libc::c_void,
}

impl Reservation {
    fn reserve(len: usize) -> io::Result<Self> {
        let total = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses a free place.
        let start = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // The kernel counts the new mapping before it removes this one: both together may exceed
        // what `RLIMIT_MEMLOCK` allows a process that locks all that it maps.
        // SAFETY: the range was just mapped, and no contents change. Where nothing is locked,
        // nothing happens.
        unsafe { libc::munlock(start, total) };
        let skip = (start as usize).next_multiple_of(HUGE) - start as usize;
        Ok(Self { start, len: total, aligned: start.wrapping_byte_add(skip) })
    }

    /// Unmaps what is reserved before the aligned start and from `len` bytes after it on.
    fn release_around(self, len: usize) {
        let host_page = usize::try_from(PageSize::host().bytes()).unwrap_or(HUGE);
        let used_end = (self.aligned as usize + len).next_multiple_of(host_page);
        let end = (self.start as usize + self.len).next_multiple_of(host_page);
        let head = self.aligned as usize - self.start as usize;
        for (at, len) in [(self.start as usize, head), (used_end, end - used_end)] {
            if len > 0 {
                // SAFETY: these pages were reserved by `reserve` and hold nothing.
                unsafe { libc::munmap(at as *mut libc::c_void, len) };
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if matches!(self.kind, MappingKind::Borrowed(_)) {
            return;
        }
        // SAFETY: by the type's invariant this is exactly our mapping, and slices of
        // it borrow the owner, so none is left.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(error) = check(result) {
            log::error!("munmap of {} bytes failed: {error}", self.len);
        }
    }
}
