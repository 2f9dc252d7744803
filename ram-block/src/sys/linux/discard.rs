//! Discarding pages of a mapping: they read as zeros, and their memory is freed.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{OnceLock, PoisonError};

use crate::sys::huge_pages::HugePages;
use crate::sys::linux::mapping::{HUGE, Mapping, MappingKind, check};

/// `MADV_DONTNEED` for memory that may be locked, since Linux 5.18 (`madvise(2)`).
const MADV_DONTNEED_LOCKED: libc::c_int = 24;
/// `MADV_COLD`, since Linux 5.4 (`madvise(2)`).
const MADV_COLD: libc::c_int = 20;

/// Whether a mapping that replaces others (`MAP_FIXED`) does so atomically, or not at all.
///
/// Before Linux 6.12 the kernel unmaps the old mapping first, and may then find no memory for the
/// new one: the place is left unmapped, and any thread may map something else in it.
fn replaces_at_once() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mut name = std::mem::MaybeUninit::<libc::utsname>::zeroed();
        // SAFETY: the kernel fills the structure, which lives during the call.
        let result = check(unsafe { libc::uname(name.as_mut_ptr()) });
        // SAFETY: all zeros is a valid value also if the call has failed.
        let name = unsafe { name.assume_init() };
        // SAFETY: the string ends with a zero within the structure, which lives long enough.
        let release = unsafe { CStr::from_ptr(name.release.as_ptr()) };
        result.is_ok() && is_from(&release.to_string_lossy(), (6, 12))
    })
}

/// Whether a kernel's `release` ("6.12.3-amd64") is `version` or newer.
fn is_from(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(Result::ok);
    number().zip(number()).is_some_and(|found| found >= version)
}

impl Mapping {
    /// Makes `bytes`, whole pages of the mapping, read as zeros and frees their memory. Fails with
    /// `Unsupported` for memory of the caller.
    pub(crate) fn discard(&self, bytes: Range<usize>) -> io::Result<()> {
        let len = bytes.len();
        if len == 0 {
            return Ok(());
        }
        debug_assert!(bytes.end <= self.len);
        if self.huge == HugePages::Pool && (bytes.start % HUGE != 0 || len % HUGE != 0) {
            // The kernel would skip parts of a huge page without an error.
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
            MappingKind::Anonymous => self.drop_or_zero(bytes),
            MappingKind::Memory(file) => punch(file, bytes.start as u64),
            MappingKind::Shared(file, base) => punch(file, base + bytes.start as u64),
            MappingKind::Private(holes) => {
                let mut holes = holes.lock().unwrap_or_else(PoisonError::into_inner);
                let may_map = !holes.contains(&bytes)
                    && holes.has_room(&bytes)
                    && replaces_at_once()
                    && !self.is_locked(&bytes);
                if may_map {
                    match self.map_hole(&bytes) {
                        Ok(()) => {
                            holes.add(bytes);
                            return Ok(());
                        }
                        Err(error) => log::debug!("no mapping for a hole: {error}"),
                    }
                }
                // Parts that still show the file's bytes are zeroed, which takes memory.
                holes.parts(&bytes).into_iter().try_for_each(|(part, is_hole)| {
                    if is_hole { self.drop_or_zero(part) } else { self.zero(part) }
                })
            }
            MappingKind::Borrowed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Maps anonymous memory in the place of `bytes`, so that the file's bytes do not show. If this
    /// fails, nothing has changed.
    fn map_hole(&self, bytes: &Range<usize>) -> io::Result<()> {
        debug_assert!(replaces_at_once());
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the place is within our own mapping, and stays mapped all the time with the
        // same protection, also if the call fails: see `replaces_at_once`.
        let new = unsafe { libc::mmap(at.cast(), bytes.len(), protection, flags, -1, 0) };
        if new == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if self.huge == HugePages::Transparent {
            // As the rest is advised: the kernel does not join mappings that differ in this.
            // SAFETY: the range is our own mapping, and the advice changes no contents.
            let advice = unsafe { libc::madvise(at.cast(), bytes.len(), libc::MADV_HUGEPAGE) };
            if let Err(error) = check(advice) {
                log::debug!("no transparent huge pages for a hole: {error}");
            }
        }
        Ok(())
    }

    /// Whether some of `bytes` are locked. A hole that is mapped there would lose the lock, and if
    /// it were locked again, its memory would not be freed.
    fn is_locked(&self, bytes: &Range<usize>) -> bool {
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        // `MADV_COLD` fails on locked memory (EINVAL). Otherwise it makes the pages, which are to
        // be dropped, the first to be reclaimed.
        // SAFETY: the range lies within the mapping, and the advice changes no contents.
        check(unsafe { libc::madvise(at.cast(), bytes.len(), MADV_COLD) }).is_err()
    }

    /// Makes private memory with no file behind it read as zeros, and frees it if it can be freed.
    fn drop_or_zero(&self, bytes: Range<usize>) -> io::Result<()> {
        match self.drop_pages(&bytes) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                log::debug!("{} bytes are zeroed, but not given back: {error}", bytes.len());
                self.zero(bytes)
            }
            result => result,
        }
    }

    /// Drops the private pages of `bytes`: the next access finds what is mapped behind them, which
    /// for anonymous memory is zeros.
    fn drop_pages(&self, bytes: &Range<usize>) -> io::Result<()> {
        // SAFETY: the range lies within the mapping.
        let at = unsafe { self.start.as_ptr().add(bytes.start) };
        // SAFETY: the range is our own private memory, of which no reference but atomic words
        // and volatile slices exist; they may change at any time.
        let advise = |advice| check(unsafe { libc::madvise(at.cast(), bytes.len(), advice) });
        match advise(libc::MADV_DONTNEED) {
            // Locked memory (`mlock`, `mlockall`) refuses this, as pages of the pool do before
            // Linux 5.18. Older kernels do not know the second advice, nor do sandboxes that list
            // the allowed advices, which may return any error: the memory is locked all the same.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                advise(MADV_DONTNEED_LOCKED).map_err(|_| error)
            }
            result => result,
        }
    }

    /// Writes zeros over the words of `bytes` that are not zero. A page that is zero is only read,
    /// so that no memory is allocated for it.
    #[allow(clippy::unnecessary_wraps)] // one of two ways, and the other can fail
    fn zero(&self, bytes: Range<usize>) -> io::Result<()> {
        self.bytes(bytes).zero();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for new in ["6.12.0", "6.12", "6.18.44-fc-v669\n", "7.0-rc1", "10.1.2"] {
            assert!(is_from(new, (6, 12)), "{new}");
        }
        for old in ["6.11.11-amd64", "6.9", "5.15.0", "4.19.0-27", "", "linux", "6"] {
            assert!(!is_from(old, (6, 12)), "{old}");
        }
    }
}
