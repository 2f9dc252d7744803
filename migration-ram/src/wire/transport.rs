//! The transports of a stream: sockets, pipes, files, memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;
use std::time::Duration;

use ram_block::{ReceiveList, SendList, TransferError};
#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::io::Errno;

#[cfg(target_os = "linux")]
use crate::host::Instant;

/// A transport that a stream is written to.
///
/// On Linux sockets, files and pipes are written straight from guest memory, without a copy. Wrap
/// other types that implement [`Write`] in [`Buffered`].
pub trait WriteTransport: Send {
    /// Writes all of `list`, in order.
    ///
    /// # Errors
    ///
    /// The cause, with the number of bytes that were written before.
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError>;

    /// Waits for `limit` at most until a few bytes can be sent without blocking, or sending would
    /// return an error; returns whether that is so. The receiver calls this before it writes to
    /// the return path: otherwise a source that never reads would block it.
    ///
    /// By default returns true at once.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be polled.
    fn wait_for_room(&mut self, limit: Duration) -> io::Result<bool> {
        let _ = limit;
        Ok(true)
    }

    /// A handle that ends a transfer under way from another thread, if the transport can do that.
    fn hang_up(&self) -> Option<ShutdownHandle> {
        None
    }
}

/// A transport that a stream is read from.
///
/// On Linux sockets, files and pipes are read straight into guest memory, without a copy. Wrap
/// other types that implement [`Read`] in [`Buffered`].
pub trait ReadTransport: Send {
    /// Reads once into the rest of `list`: as many bytes as are available, but at least one; 0 at
    /// the end.
    ///
    /// # Errors
    ///
    /// If the descriptor or reader fails.
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError>;

    /// Waits for `limit` at most until [`receive`](Self::receive) would not block: there are bytes,
    /// or the end. Returns whether that is so. [`Deadlines`](crate::Deadlines) depend on this.
    ///
    /// By default returns true at once, so that `receive` blocks without a deadline: for memory,
    /// which never blocks, and for [`Buffered`], which cannot be polled.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be polled.
    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let _ = limit;
        Ok(true)
    }

    /// A handle that ends a transfer under way from another thread, if the transport can do that.
    fn hang_up(&self) -> Option<ShutdownHandle> {
        None
    }
}

/// Shuts a connection down while another thread is sending or receiving. A clone shuts down the
/// same connection.
#[derive(Clone)]
pub struct ShutdownHandle(Arc<dyn Fn() + Send + Sync>);

impl ShutdownHandle {
    /// `hang_up` must end all transfers, those under way and later ones.
    pub fn new(hang_up: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(hang_up))
    }

    /// Ends all transfers, those under way and later ones.
    pub fn hang_up(&self) {
        (self.0)();
    }
}

impl fmt::Debug for ShutdownHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShutdownHandle")
    }
}

/// A transport of any reader or writer; copies the bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffered<T>(pub T);

impl<W: Write + Send> WriteTransport for Buffered<W> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        list.write_to(&mut self.0)
    }
}

impl<R: Read + Send> ReadTransport for Buffered<R> {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        list.read_some_from(&mut self.0)
    }
}

/// Waits until a descriptor can be read without waiting, for `limit` at most.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for_input(descriptor: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    wait_for(descriptor, PollFlags::IN, limit)
}

#[cfg(target_os = "linux")]
fn wait_for(descriptor: BorrowedFd<'_>, event: PollFlags, limit: Duration) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        // A duration that does not fit a timespec means no timeout.
        let left = Timespec::try_from(left).ok();
        let mut descriptors = [PollFd::from_borrowed_fd(descriptor, event)];
        match poll(&mut descriptors, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(target_os = "linux")]
macro_rules! by_descriptor {
    ($($descriptor:ty $(, $shutdown:ident)?;)+) => {
        $(
            impl WriteTransport for $descriptor {
                fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
                    list.write_to_fd(self.as_fd())
                }

                fn wait_for_room(&mut self, limit: Duration) -> io::Result<bool> {
                    wait_for(self.as_fd(), PollFlags::OUT, limit)
                }
                $(by_descriptor!(@$shutdown Write);)?
            }

            impl ReadTransport for $descriptor {
                fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
                    list.read_from_fd(self.as_fd())
                }

                fn wait(&mut self, limit: Duration) -> io::Result<bool> {
                    wait_for_input(self.as_fd(), limit)
                }
                $(by_descriptor!(@$shutdown Read);)?
            }
        )+
    };
    (@socket $side:ident) => {
        fn hang_up(&self) -> Option<ShutdownHandle> {
            let socket = self.try_clone().ok()?;
            Some(ShutdownHandle::new(move || {
                // Fails if the socket is closed already: nothing to end.
                let _ = socket.shutdown(Shutdown::$side);
            }))
        }
    };
}

/// The same, through a buffer; nothing can be polled, so that deadlines have no effect.
#[cfg(not(target_os = "linux"))]
macro_rules! by_descriptor {
    ($($stream:ty $(, $shutdown:ident)?;)+) => {
        $(
            impl WriteTransport for $stream {
                fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
                    list.write_to(self)
                }
                $(by_descriptor!(@$shutdown Write);)?
            }

            impl ReadTransport for $stream {
                fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
                    list.read_some_from(self)
                }
                $(by_descriptor!(@$shutdown Read);)?
            }
        )+
    };
    (@socket $side:ident) => {
        fn hang_up(&self) -> Option<ShutdownHandle> {
            let socket = self.try_clone().ok()?;
            Some(ShutdownHandle::new(move || {
                // Fails if the socket is closed already: nothing to end.
                let _ = socket.shutdown(Shutdown::$side);
            }))
        }
    };
}

by_descriptor! {
    TcpStream, socket;
    &TcpStream, socket;
    File;
    &File;
}

#[cfg(unix)]
by_descriptor! {
    UnixStream, socket;
    &UnixStream, socket;
}

impl WriteTransport for ChildStdin {
    #[cfg(target_os = "linux")]
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        list.write_to_fd(self.as_fd())
    }

    #[cfg(not(target_os = "linux"))]
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        list.write_to(self)
    }

    #[cfg(target_os = "linux")]
    fn wait_for_room(&mut self, limit: Duration) -> io::Result<bool> {
        wait_for(self.as_fd(), PollFlags::OUT, limit)
    }
}

impl ReadTransport for ChildStdout {
    #[cfg(target_os = "linux")]
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        list.read_from_fd(self.as_fd())
    }

    #[cfg(not(target_os = "linux"))]
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        list.read_some_from(self)
    }

    #[cfg(target_os = "linux")]
    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        wait_for_input(self.as_fd(), limit)
    }
}

impl WriteTransport for Vec<u8> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        list.write_to(self)
    }
}

impl ReadTransport for &[u8] {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        list.read_some_from(self)
    }
}

impl<T: WriteTransport + ?Sized> WriteTransport for Box<T> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        (**self).send(list)
    }

    fn wait_for_room(&mut self, limit: Duration) -> io::Result<bool> {
        (**self).wait_for_room(limit)
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        (**self).hang_up()
    }
}

impl<T: ReadTransport + ?Sized> ReadTransport for Box<T> {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        (**self).receive(list)
    }

    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        (**self).wait(limit)
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        (**self).hang_up()
    }
}

/// The connections of a migration's source.
///
/// A single transport converts into one: `precopy.run(&mut socket, ...)`.
#[allow(missing_debug_implementations)] // outputs need not have one
pub struct OutgoingChannels<'a> {
    pub(crate) main: &'a mut dyn WriteTransport,
    pub(crate) channels: Vec<&'a mut dyn WriteTransport>,
    pub(crate) back: Option<&'a mut dyn ReadTransport>,
}

impl<'a> OutgoingChannels<'a> {
    /// One connection.
    pub fn new(main: &'a mut dyn WriteTransport) -> Self {
        Self { main, channels: Vec::new(), back: None }
    }

    /// Sends pages that are not zero over these connections, in parallel, in QEMU's multifd
    /// packets: 1 to 16 channels, a thread for each; `main` carries the rest. The receiver must
    /// expect as many (QEMU: capability `multifd`, parameter `multifd-channels`). Where QEMU waits
    /// for the channels depends on its version: see [`Precopy`](crate::Precopy)'s
    /// `multifd_flush_after_each_section`.
    #[must_use]
    pub fn channels(
        mut self,
        channels: impl IntoIterator<Item = &'a mut dyn WriteTransport>,
    ) -> Self {
        self.channels = channels.into_iter().collect();
        self
    }

    /// Reads QEMU's return path from here: the migration is complete when the receiver
    /// acknowledges that it has loaded everything. Without a return path it is complete when the
    /// last byte was written. Usually the same socket as `main`.
    #[must_use]
    pub fn return_path(mut self, back: &'a mut dyn ReadTransport) -> Self {
        self.back = Some(back);
        self
    }
}

impl<'a, T: WriteTransport> From<&'a mut T> for OutgoingChannels<'a> {
    fn from(main: &'a mut T) -> Self {
        Self::new(main)
    }
}

/// The connections of a migration's destination.
///
/// A single transport converts into one: `receiver.run(&mut socket)`.
#[allow(missing_debug_implementations)] // inputs need not have one
pub struct IncomingChannels<'a> {
    pub(crate) inputs: Vec<&'a mut dyn ReadTransport>,
    pub(crate) back: Option<&'a mut dyn WriteTransport>,
}

impl<'a> IncomingChannels<'a> {
    /// One connection.
    pub fn new(main: &'a mut dyn ReadTransport) -> Self {
        Self { inputs: vec![main], back: None }
    }

    /// Several connections in any order: one carries the stream, 1 to 16 are multifd channels.
    /// They are told apart by their first bytes.
    pub fn several(inputs: impl IntoIterator<Item = &'a mut dyn ReadTransport>) -> Self {
        Self { inputs: inputs.into_iter().collect(), back: None }
    }

    /// Writes the return path here, if the source opens one (QEMU: capability `return-path`).
    #[must_use]
    pub fn return_path(mut self, back: &'a mut dyn WriteTransport) -> Self {
        self.back = Some(back);
        self
    }
}

impl<'a, T: ReadTransport> From<&'a mut T> for IncomingChannels<'a> {
    fn from(main: &'a mut T) -> Self {
        Self::new(main)
    }
}
