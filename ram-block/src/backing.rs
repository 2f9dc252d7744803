//! Host memory: mapped here, unmapped here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};

/// The host's page size in bytes.
pub(crate) fn host_page_bytes() -> u64 {
    // SAFETY: sysconf reads no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(0)
}

/// Asks the kernel to back `words` with huge pages where they are touched: a bitmap
/// that is read here and there is bound by address translation otherwise. Small arrays
/// are left alone, and a refusal costs speed only.
pub(crate) fn prefer_huge_pages(words: &mut [u64]) {
    const HUGE: usize = 2 << 20;
    let start = (words.as_mut_ptr() as usize).next_multiple_of(HUGE);
    let end = (words.as_ptr_range().end as usize) & !(HUGE - 1);
    if start < end && end - start >= 2 * HUGE {
        // SAFETY: the range lies within `words`, which is borrowed exclusively, and the
        // advice changes no contents.
        let result =
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        if result != 0 {
            log::debug!("no huge pages for a bitmap: {}", io::Error::last_os_error());
        }
    }
}

/// A readable and writable mapping that this value owns.
///
/// Invariant: `start` is the start of a mapping of `len` bytes, which lives until
/// the value is dropped and which nothing else unmaps or remaps.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    file: Option<File>,
}

// SAFETY: the mapping is plain memory without thread affinity, and the methods
// that reach it (through `block`) use accesses that tolerate concurrent ones.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private, zero, not yet populated memory of `len` bytes (non-zero).
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, None)
    }

    /// Memory of `len` bytes (non-zero) in a memory file, which another process can
    /// map by its descriptor; zero and not yet populated.
    pub(crate) fn memfd(len: usize) -> io::Result<Self> {
        // SAFETY: the name is a NUL-terminated string that outlives the call.
        let fd = unsafe { libc::memfd_create(c"ram-block".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        Self::map(len, Some(file))
    }

    fn map(len: usize, file: Option<File>) -> io::Result<Self> {
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses a free place, so no memory
        // that is in use changes.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, flags | libc::MAP_NORESERVE, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len, file })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the next byte from `offset` on is that the memory file has; its length if
    /// there is none, `offset` if it cannot be told.
    pub(crate) fn next_data(&self, offset: u64) -> u64 {
        let Some(file) = &self.file else { return offset };
        let Ok(from) = libc::off_t::try_from(offset) else { return offset };
        // SAFETY: lseek takes numbers only. It moves the descriptor's position, which
        // nobody uses.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) };
        match u64::try_from(found) {
            Ok(found) => found,
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => {
                self.len as u64
            }
            Err(_) => offset,
        }
    }

    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant this is exactly our mapping, and slices of
        // it borrow the owner, so none is left.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        if result != 0 {
            log::error!("munmap of {} bytes failed: {}", self.len, io::Error::last_os_error());
        }
    }
}
