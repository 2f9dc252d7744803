//! Sockets: the listener, and the connections to viewers.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;

/// A socket that listens for viewers.
#[derive(Debug)]
#[non_exhaustive]
pub enum VncListener {
    /// On an address and a port.
    Tcp(TcpListener),
    /// On a path; the caller removes the socket's file.
    Unix(UnixListener),
}

impl From<TcpListener> for VncListener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for VncListener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl VncListener {
    /// The address, if it has one.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Waits for a viewer; `None` when the other end of `stop` is closed.
    pub(crate) fn accept(&self, stop: &UnixStream) -> io::Result<Option<Stream>> {
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let stream = match self {
                Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
                Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            };
            match stream {
                // The viewer has closed the connection already.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                stream => return stream.map(Some),
            }
        }
    }

    /// Makes the socket non-blocking, so that only the poll of [`accept`](Self::accept) blocks.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for VncListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A connection to a viewer.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Makes reads and writes blocking, and disables Nagle's algorithm (`TCP_NODELAY`).
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)
            }
            Self::Unix(stream) => stream.set_nonblocking(false),
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Reads wait without a timeout, a write fails if it makes no progress for `timeout`, and both
    /// fail if the viewer's machine is gone.
    pub(crate) fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(None)?;
        self.set_write_timeout(Some(timeout))?;
        match self {
            Self::Tcp(stream) => set_keepalive(stream, timeout),
            Self::Unix(_) => Ok(()), // the kernel reports the end of the other process
        }
    }

    /// Shuts the connection down; blocked reads and writes return.
    pub(crate) fn close(&self) {
        // Fails if the viewer has closed it already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Makes a connection fail if the other machine does not acknowledge sent bytes for `timeout`
/// (TCP user timeout), or, if there are none, does not answer keep-alive probes for twice as long
/// and two seconds, as probes are timed in whole seconds. TCP sends no probes while bytes are
/// unacknowledged; then the user timeout applies. The options are Linux's: see tcp(7).
fn set_keepalive(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    let limit = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs());
    let seconds = |of: Duration| of.clamp(Duration::from_secs(1), MAX_KEEPALIVE);
    sockopt::set_tcp_user_timeout(stream, limit)?;
    sockopt::set_tcp_keepidle(stream, seconds(timeout))?;
    sockopt::set_tcp_keepintvl(stream, seconds(timeout / 4))?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// The kernel's limit of keep-alive times (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`).
const MAX_KEEPALIVE: Duration = Duration::from_secs(32767);

impl Read for &Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(out),
            Stream::Unix(stream) => (&*stream).read(out),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection whose reads and writes fail after a common deadline.
#[derive(Debug)]
pub(crate) struct DeadlineStream<'a> {
    stream: &'a Stream,
    /// `None` if it exceeds the range of `Instant`.
    deadline: Option<Instant>,
}

impl<'a> DeadlineStream<'a> {
    pub(crate) fn new(stream: &'a Stream, limit: Duration) -> Self {
        Self { stream, deadline: Instant::now().checked_add(limit) }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for DeadlineStream<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(out)
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
