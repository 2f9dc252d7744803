//! Sockets: where viewers knock, and the connections to them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;

/// A socket on which viewers are awaited.
#[derive(Debug)]
pub enum VncListener {
    /// On an address and a port.
    Tcp(TcpListener),
    /// On a path; whoever made it removes the file.
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
                // Whoever knocked is gone.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                stream => return stream.map(Some),
            }
        }
    }

    /// Lets [`accept`](Self::accept) be the only one to wait.
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
    /// Small messages go out at once, and reads and writes wait.
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

    /// Reads wait as long as it takes, a write for `patience` to get on, and both for a machine
    /// that is there.
    pub(crate) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(None)?;
        self.set_write_timeout(Some(patience))?;
        match self {
            Self::Tcp(stream) => notice_absence(stream, patience),
            Self::Unix(_) => Ok(()), // its other end cannot go without a word
        }
    }

    /// Ends the connection; whoever waits for it returns.
    pub(crate) fn close(&self) {
        // It may have ended by itself.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Lets a connection fail whose other machine is silent for `patience`, or twice as long and two
/// seconds if nothing is on its way to it: then TCP asks whether it is there, in whole seconds.
/// While something is not acknowledged it asks nothing, and the user timeout is what counts. The
/// options are Linux's: see tcp(7).
fn notice_absence(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let limit =
        u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs());
    let seconds = |of: Duration| of.clamp(Duration::from_secs(1), LONGEST_SILENCE);
    sockopt::set_tcp_user_timeout(stream, limit)?;
    sockopt::set_tcp_keepidle(stream, seconds(patience))?;
    sockopt::set_tcp_keepintvl(stream, seconds(patience / 4))?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// The longest that the kernel waits before it asks (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`).
const LONGEST_SILENCE: Duration = Duration::from_secs(32767);

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

/// A connection all of whose reads and writes end by a deadline.
#[derive(Debug)]
pub(crate) struct Hurried<'a> {
    stream: &'a Stream,
    /// None if it is too far to be counted.
    deadline: Option<Instant>,
}

impl<'a> Hurried<'a> {
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

impl Read for Hurried<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(out)
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
