//! The system calls that move bytes between a descriptor and many pieces of memory.
//!
//! Guest memory is passed to the kernel by address. No reference to it is made: a guest may store
//! to it while the kernel copies, and which of the bytes are copied then is as undetermined as with
//! any other device that reads memory.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::sys::volatile::VolatileBytes;

/// Pieces that the kernel takes in one call.
pub(super) const UIO_MAXIOV: usize = 1024;

/// Memory that may be read until `'a` ends.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct IoSlice<'a>(libc::iovec, PhantomData<&'a [u8]>);

impl<'a> IoSlice<'a> {
    pub(super) fn bytes(bytes: &'a [u8]) -> Self {
        let base = bytes.as_ptr().cast_mut().cast();
        Self(libc::iovec { iov_base: base, iov_len: bytes.len() }, PhantomData)
    }

    pub(super) fn memory(memory: &VolatileBytes<'a>) -> Self {
        let base = memory.as_ptr().cast();
        Self(libc::iovec { iov_base: base, iov_len: memory.len() }, PhantomData)
    }
}

/// Memory that may be written until `'a` ends.
#[repr(transparent)]
pub(super) struct IoSliceMut<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

impl<'a> IoSliceMut<'a> {
    pub(super) fn bytes(bytes: &'a mut [u8]) -> Self {
        let base = bytes.as_mut_ptr().cast();
        Self(libc::iovec { iov_base: base, iov_len: bytes.len() }, PhantomData)
    }

    pub(super) fn memory(memory: &VolatileBytes<'a>) -> Self {
        let base = memory.as_ptr().cast();
        Self(libc::iovec { iov_base: base, iov_len: memory.len() }, PhantomData)
    }
}

/// Room for the pieces of a call, contiguous as the kernel needs them. It is filled in place: its
/// 16 KiB, of which most calls need little, are never moved.
struct Batch<T> {
    pieces: [MaybeUninit<T>; UIO_MAXIOV],
    count: usize,
}

impl<T> Batch<T> {
    #[inline(always)]
    fn new() -> Self {
        Self { pieces: [const { MaybeUninit::uninit() }; UIO_MAXIOV], count: 0 }
    }

    /// Takes the first [`UIO_MAXIOV`] of some pieces.
    fn fill(&mut self, pieces: impl Iterator<Item = T>) {
        for (place, piece) in self.pieces.iter_mut().zip(pieces) {
            place.write(piece);
            self.count += 1;
        }
    }

    /// A message of these pieces, which lie at `self` as long as it is used.
    fn message(&self) -> libc::msghdr {
        // SAFETY: integers and pointers, for all of which zero is a value.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        // The kernel writes to what the pieces name, not to the pieces.
        message.msg_iov = self.pieces.as_ptr().cast_mut().cast();
        message.msg_iovlen = self.count as _;
        message
    }

    fn parts(&self) -> (libc::c_int, *const libc::iovec) {
        // At most `UIO_MAXIOV`.
        (libc::c_int::try_from(self.count).unwrap_or(0), self.pieces.as_ptr().cast())
    }
}

/// The result of a call, which is repeated if a signal interrupts it.
fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A descriptor to be written or read; `plain` once it turned out to be no socket.
pub(super) struct Stream<'fd> {
    fd: BorrowedFd<'fd>,
    plain: bool,
}

impl<'fd> Stream<'fd> {
    pub(super) fn new(fd: BorrowedFd<'fd>) -> Self {
        Self { fd, plain: false }
    }

    /// The result of the call for sockets or, if the descriptor is none, of the other.
    fn either(
        &mut self,
        mut socket: impl FnMut(libc::c_int) -> isize,
        mut plain: impl FnMut(libc::c_int) -> isize,
    ) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        if !self.plain {
            match uninterrupted(|| socket(fd)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => self.plain = true,
                result => return result,
            }
        }
        uninterrupted(|| plain(fd))
    }

    /// Writes some of the pieces, in order; a broken socket raises no signal.
    pub(super) fn write<'a>(
        &mut self,
        pieces: impl Iterator<Item = IoSlice<'a>>,
    ) -> io::Result<usize> {
        let mut batch = Batch::new();
        batch.fill(pieces);
        let message = batch.message();
        let (count, first) = batch.parts();
        self.either(
            // SAFETY: the message names the first `count` of the batch's pieces, which were
            // written, and each is memory that may be read as long as `'a` lasts.
            |fd| unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) },
            // SAFETY: as above. `IoSlice` is an `iovec`.
            |fd| unsafe { libc::writev(fd, first, count) },
        )
    }

    /// Fills the beginning of the pieces, in order, with what there is.
    pub(super) fn read<'a>(
        &mut self,
        pieces: impl Iterator<Item = IoSliceMut<'a>>,
    ) -> io::Result<usize> {
        let mut batch = Batch::new();
        batch.fill(pieces);
        let mut message = batch.message();
        let (count, first) = batch.parts();
        self.either(
            // SAFETY: the message names the first `count` of the batch's pieces, which were
            // written, and each is memory that may be written as long as `'a` lasts.
            |fd| unsafe { libc::recvmsg(fd, &raw mut message, 0) },
            // SAFETY: as above. `IoSliceMut` is an `iovec`.
            |fd| unsafe { libc::readv(fd, first, count) },
        )
    }

    /// Whether it is a file that is read past the host's caches (`O_DIRECT`): after an error the
    /// device may have written more than the call reports.
    pub(super) fn is_direct(&self) -> bool {
        self.plain && self.flags().is_some_and(|flags| flags & libc::O_DIRECT != 0)
    }

    fn flags(&self) -> Option<libc::c_int> {
        // SAFETY: fcntl takes numbers only here.
        let flags = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL) };
        (flags >= 0).then_some(flags)
    }

    /// After a call that would have had to wait: waits until `events` (`POLLIN` or `POLLOUT`) are
    /// ready. If the descriptor is blocking, the call has waited for as long as the descriptor
    /// allows: that is a timeout.
    pub(super) fn wait(&self, events: libc::c_short) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        if self.flags().is_some_and(|flags| flags & libc::O_NONBLOCK == 0) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut poll = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one `pollfd` that lives during the call.
        uninterrupted(|| unsafe { libc::poll(&raw mut poll, 1, -1) } as isize).map(drop)
    }
}

/// Copies guest memory by the kernel, which returns an error where an access by the process itself
/// would kill it. Returns how many bytes were copied, all before the first that is gone; `None` if
/// the kernel refuses the call.
pub(super) fn copy_out(memory: &VolatileBytes<'_>, buffer: &mut [u8]) -> Option<usize> {
    let (remote, local, process) = (IoSlice::memory(memory), IoSliceMut::bytes(buffer), own_id());
    // SAFETY: one piece that may be read and one that may be written, both until the call
    // returns. The process is this one.
    copied(unsafe {
        libc::process_vm_readv(process, ptr::from_ref(&local.0), 1, &raw const remote.0, 1, 0)
    })
}

/// As [`copy_out`], into guest memory.
pub(super) fn copy_in(bytes: &[u8], memory: &VolatileBytes<'_>) -> Option<usize> {
    let (local, remote, process) = (IoSlice::bytes(bytes), IoSliceMut::memory(memory), own_id());
    // SAFETY: one piece that may be read and one that may be written, both until the call
    // returns. The process is this one.
    copied(unsafe {
        libc::process_vm_writev(process, ptr::from_ref(&local.0), 1, &raw const remote.0, 1, 0)
    })
}

fn own_id() -> libc::pid_t {
    // SAFETY: getpid takes nothing and cannot fail.
    unsafe { libc::getpid() }
}

fn copied(result: isize) -> Option<usize> {
    match usize::try_from(result) {
        Ok(count) => Some(count),
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) => Some(0),
        Err(_) => None,
    }
}
