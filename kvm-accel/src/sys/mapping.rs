//! Mapping what KVM shares through a vCPU's descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use kvm_ioctls::VcpuFd;

/// A readable and writable mapping of a part of a vCPU's descriptor.
///
/// Invariant: `start` is the start of a mapping of `len` bytes, page-aligned, which lives
/// until the value is dropped. The kernel writes to it at any time.
#[derive(Debug)]
pub(crate) struct VcpuMapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping has no thread affinity; references that are handed out into it are references
// to atomics.
unsafe impl Send for VcpuMapping {}
// SAFETY: as above.
unsafe impl Sync for VcpuMapping {}

impl VcpuMapping {
    /// Maps `len` bytes from byte `offset` of the descriptor on.
    pub(crate) fn new(vcpu: &VcpuFd, offset: libc::off_t, len: usize) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED no memory that is in use changes.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    /// Checks that all pages can be read, where the kernel can tell (Linux 5.14).
    pub(crate) fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own; no contents change.
        let result = unsafe {
            libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_POPULATE_READ)
        };
        let error = io::Error::last_os_error();
        // EINVAL: an older kernel.
        if result == 0 || error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for VcpuMapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; references into it borrow `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
