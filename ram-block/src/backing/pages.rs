//! Pages of a mapping, given to it and taken from it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{HUGE, HugePages, Kind, Mapping, check};
use crate::page::{PageSize, index};

/// `MADV_DONTNEED` for memory that may be locked, since Linux 5.18 (`madvise(2)`).
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

impl Mapping {
    /// Makes the pages of `bytes`, whole pages of the mapping, writable without a fault.
    pub(crate) fn populate(&self, bytes: Range<usize>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        debug_assert!(bytes.end <= self.len);
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        loop {
            // SAFETY: the range lies within the mapping, and the advice changes no contents.
            let result =
                check(unsafe { libc::madvise(at.cast(), bytes.len(), libc::MADV_POPULATE_WRITE) });
            match result {
                // The kernel is older than 5.14.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.touch(bytes);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Writes a byte of each page of `bytes` that is there already.
    pub(crate) fn touch(&self, bytes: Range<usize>) {
        for at in bytes.step_by(index(PageSize::host().bytes())) {
            // SAFETY: the byte lies within the mapping, which lives as long as `self`.
            let address = unsafe { self.start.as_ptr().add(at) };
            // SAFETY: as above; others access it by atomic or volatile accesses, or are guests.
            let byte = unsafe { AtomicU8::from_ptr(address) };
            // An exchange is a write also if it changes nothing. If it fails, somebody else
            // has written.
            let value = byte.load(Ordering::Relaxed);
            let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Makes `bytes`, whole pages of the mapping, read as zeros and gives their memory
    /// back, which cannot be done with memory of somebody else.
    pub(crate) fn discard(&self, bytes: Range<usize>) -> io::Result<()> {
        let len = bytes.len();
        if len == 0 {
            return Ok(());
        }
        debug_assert!(bytes.end <= self.len);
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        if self.huge == HugePages::Pool && (bytes.start % HUGE != 0 || len % HUGE != 0) {
            // The kernel would leave out the parts, and say nothing.
            return Err(io::Error::other("a part of a huge page cannot be given back"));
        }
        let punch = |file: &File, from: u64| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let number = |n: u64| libc::off_t::try_from(n).map_err(io::Error::other);
            let (from, count) = (number(from)?, number(len as u64)?);
            // SAFETY: fallocate takes numbers only; the pages that it takes out of
            // the mapping read as zeros afterwards.
            check(unsafe { libc::fallocate(file.as_raw_fd(), mode, from, count) })
        };
        match &self.kind {
            Kind::Anonymous => match self.drop_pages(&bytes) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    log::debug!("{len} bytes are zeroed, but not given back: {error}");
                    self.zero(bytes);
                    Ok(())
                }
                result => result,
            },
            Kind::Memory(file) => punch(file, bytes.start as u64),
            Kind::Shared(file, base) => punch(file, base + bytes.start as u64),
            Kind::Private => {
                // Without the file's bytes behind them: those would show again.
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let flags = flags | libc::MAP_NORESERVE;
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: the place is within our own mapping, and stays mapped all the
                // time with the same protection.
                let new = unsafe { libc::mmap(at.cast(), len, protection, flags, -1, 0) };
                if new == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
            }
            Kind::Borrowed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Drops the private pages of `bytes`: the next access finds what lies behind them, which
    /// of anonymous memory is zeros.
    fn drop_pages(&self, bytes: &Range<usize>) -> io::Result<()> {
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        let mut result = Ok(());
        // Locked memory (`mlock`, `mlockall`) refuses the first advice with EINVAL, as pages of
        // the pool do before Linux 5.18; older kernels do not know the second.
        for advice in [libc::MADV_DONTNEED, MADV_DONTNEED_LOCKED] {
            // SAFETY: the range is our own private memory, of which no reference but
            // atomic words and volatile slices exist; they may change at any time.
            result = check(unsafe { libc::madvise(at.cast(), bytes.len(), advice) });
            match &result {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                _ => break,
            }
        }
        result
    }

    /// Writes zeros over what is not zero of `bytes`. A page that is zero is only read, so that
    /// it takes no memory.
    fn zero(&self, bytes: Range<usize>) {
        for at in bytes.step_by(size_of::<u64>()) {
            // SAFETY: the word lies within the mapping, whose length is rounded up to whole
            // pages by the kernel, and which lives as long as `self`.
            let address = unsafe { self.start.as_ptr().add(at) };
            // SAFETY: as above, aligned to a word, as the mapping is to a page; others access
            // it by atomic or volatile accesses, or are guests.
            let word = unsafe { AtomicU64::from_ptr(address.cast()) };
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}
