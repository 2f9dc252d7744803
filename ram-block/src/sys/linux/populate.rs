//! Allocating pages of a mapping before they are touched.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

use crate::page::{PageSize, index};
use crate::sys::linux::mapping::{Mapping, check};

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

    /// Writes to a byte of each page of `bytes` the value that it has.
    pub(crate) fn touch(&self, bytes: Range<usize>) {
        self.bytes(bytes).touch(index(PageSize::host().bytes()));
    }
}
