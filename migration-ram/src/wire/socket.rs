//! Sockets with the options that a migration needs: no delay, a deadline to connect, and detection
//! of a peer whose machine is gone.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use ram_block::{ReceiveList, SendList, TransferError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use crate::wire::transport::{ReadTransport, ShutdownHandle, WriteTransport, wait_for_input};

/// The time between two attempts to connect to a destination that does not listen yet.
const RETRY: Duration = Duration::from_millis(5);
/// TCP keep-alive: the idle time before the first probe, the time between probes, and how many
/// fail before the connection is closed.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 4);
/// TCP's user timeout (RFC 5482). On Linux it also expires if the peer is alive and does not read,
/// so it is longer than the default of [`Deadlines::idle`](crate::Deadlines::idle), whose error
/// says more.
const USER_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a destination listens: `HOST:PORT`, or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A host's name or address, and a port.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A string that is not an [`Address`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum AddressError {
    /// It is neither `HOST:PORT` nor `unix:PATH`.
    #[error("{text:?} is neither HOST:PORT nor unix:PATH")]
    Form { text: String },
    /// It has a control character: printed as a line, or on a terminal, it would look like another
    /// address.
    #[error("{text:?} has a control character, which an address cannot have")]
    ControlCharacter { text: String },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains(|c: char| c.is_control()) {
            return Err(AddressError::ControlCharacter { text: text.to_owned() });
        }
        match (text.strip_prefix("unix:"), text.rsplit_once(':')) {
            (Some(path), _) if !path.is_empty() => Ok(Self::Unix(path.into())),
            (None, Some((host, port))) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(AddressError::Form { text: text.to_owned() }),
        }
    }
}

/// The form that [`FromStr`] parses. A path that is not UTF-8, or has control characters, is
/// escaped, which [`FromStr`] does not undo.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self {
            Self::Tcp(address) => return f.write_str(address),
            Self::Unix(path) => path,
        };
        match path.to_str().filter(|path| !path.contains(|c: char| c.is_control())) {
            Some(path) => write!(f, "unix:{path}"),
            None => write!(f, "unix:{path:?}"),
        }
    }
}

/// Why a connection cannot be made or accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum SocketError {
    /// Connecting failed until the deadline.
    #[error("Cannot connect to {address}, {waited:.1?} after the first try")]
    Connect { address: Address, waited: Duration, source: io::Error },
    /// Listening failed.
    #[error("Cannot listen at {address}")]
    Listen { address: Address, source: io::Error },
    /// No connection was made until the deadline.
    #[error("Waited {waited:.1?} for a connection at {address}")]
    NobodyCame { address: Address, waited: Duration },
    /// A connection cannot be accepted, or a socket option cannot be set.
    #[error("A connection cannot be used")]
    Unusable(#[from] io::Error),
}

/// One connection of a migration.
///
/// TCP sends written bytes at once (`TCP_NODELAY`). A peer whose machine has crashed or is
/// unreachable is detected within half a minute if no bytes to it are unacknowledged
/// (`SO_KEEPALIVE`), and within 90 seconds otherwise
/// ([`set_user_timeout`](Self::set_user_timeout)). A peer whose machine is up but whose process
/// does nothing is detected by [`Deadlines`](crate::Deadlines).
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use migration_ram::{Listener, Socket};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// let source = Socket::connect(&listener.address()?, Duration::from_secs(5))?;
/// let destination = listener.accept(Duration::from_secs(5))?;
/// # drop((source, destination));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Within this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a destination that listens, or is about to: tries again until it does, for
    /// `limit` at most. (Resolving a host's name may take longer.)
    ///
    /// # Errors
    ///
    /// [`SocketError::Connect`], with the error of the last attempt.
    pub fn connect(address: &Address, limit: Duration) -> Result<Self, SocketError> {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let socket = match address {
                Address::Tcp(address) => connect_tcp(address, left).and_then(Self::set_up),
                Address::Unix(path) => connect_unix(path).map(Self::Unix),
            };
            match socket {
                Ok(socket) => return Ok(socket),
                Err(error) if may_come(&error) && begin.elapsed() < limit => {
                    std::thread::sleep(RETRY.min(left));
                }
                Err(source) => {
                    let (address, waited) = (address.clone(), begin.elapsed());
                    return Err(SocketError::Connect { address, waited, source });
                }
            }
        }
    }

    /// A TCP connection that was made in another way, set up as [above](Self).
    ///
    /// # Errors
    ///
    /// [`SocketError::Unusable`], if the operating system refuses.
    pub fn tcp(socket: TcpStream) -> Result<Self, SocketError> {
        Ok(Self::set_up(socket)?)
    }

    fn set_up(socket: TcpStream) -> io::Result<Self> {
        let (idle, interval, count) = KEEP_ALIVE;
        socket.set_nodelay(true)?;
        sockopt::set_tcp_keepidle(&socket, idle)?;
        sockopt::set_tcp_keepintvl(&socket, interval)?;
        sockopt::set_tcp_keepcnt(&socket, count)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        let socket = Self::Tcp(socket);
        socket.user_timeout(Some(USER_TIMEOUT))?;
        Ok(socket)
    }

    /// Sets how long sent bytes may be unacknowledged over TCP, in whole milliseconds, before the
    /// connection is closed (`TCP_USER_TIMEOUT`): 90 seconds by default. With `None` TCP closes it
    /// after its last retransmission, a quarter of an hour or so, or, if the peer is alive and
    /// does not read, never. Unix sockets have no such limit.
    ///
    /// # Errors
    ///
    /// [`SocketError::Unusable`], if the operating system refuses: for more than 24 days.
    pub fn set_user_timeout(&self, limit: Option<Duration>) -> Result<(), SocketError> {
        Ok(self.user_timeout(limit)?)
    }

    fn user_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        let Self::Tcp(socket) = self else { return Ok(()) };
        // 0 is the system's default, for `None`; a limit is 1 ms at least.
        let least = |limit: Duration| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        Ok(sockopt::set_tcp_user_timeout(socket, limit.map_or(0, least))?)
    }

    /// Another handle of the same connection: for the other direction.
    ///
    /// # Errors
    ///
    /// [`SocketError::Unusable`], if there are too many open files.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

/// Whether another attempt to connect may succeed.
fn may_come(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, TimedOut, WouldBlock};
    matches!(error.kind(), ConnectionRefused | NotFound | TimedOut | WouldBlock)
}

fn connect_tcp(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let begin = Instant::now();
    let mut result = Err(io::Error::new(io::ErrorKind::InvalidInput, "the host has no address"));
    for address in address.to_socket_addrs()? {
        // 1 ms at least: a timeout of 0 is an error of another kind (InvalidInput).
        let left = limit.saturating_sub(begin.elapsed()).max(Duration::from_millis(1));
        result = TcpStream::connect_timeout(&address, left);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Connects without blocking: a full backlog is an error (EAGAIN).
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

macro_rules! of_either {
    ($self:ident, $socket:ident => $body:expr) => {
        match $self {
            Self::Tcp($socket) => $body,
            Self::Unix($socket) => $body,
        }
    };
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        of_either!(self, socket => socket.read(bytes))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        of_either!(self, socket => socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteTransport for Socket {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        of_either!(self, socket => socket.send(list))
    }

    fn wait_for_room(&mut self, limit: Duration) -> io::Result<bool> {
        of_either!(self, socket => socket.wait_for_room(limit))
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        of_either!(self, socket => WriteTransport::hang_up(socket))
    }
}

impl ReadTransport for Socket {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        of_either!(self, socket => socket.receive(list))
    }

    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        of_either!(self, socket => socket.wait(limit))
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        of_either!(self, socket => ReadTransport::hang_up(socket))
    }
}

/// A destination that listens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// Within this machine. Dropping the listener removes the socket's file.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at an address; port 0 is a free one.
    ///
    /// # Errors
    ///
    /// [`SocketError::Listen`], if the address is in use, or not one of this host.
    pub fn bind(address: &Address) -> Result<Self, SocketError> {
        let listener = match address {
            Address::Tcp(address) => TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }),
            Address::Unix(path) => UnixListener::bind(path).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, path.clone()))
            }),
        };
        listener.map_err(|source| SocketError::Listen { address: address.clone(), source })
    }

    /// The address at which it listens.
    ///
    /// # Errors
    ///
    /// [`SocketError::Unusable`], if the operating system does not say.
    pub fn address(&self) -> Result<Address, SocketError> {
        Ok(match self {
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Self::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Waits for one connection, for `limit` at most, or without a deadline if that is `None`. A
    /// source opens its channels right after its first connection.
    ///
    /// # Errors
    ///
    /// [`SocketError::NobodyCame`], and [`SocketError::Unusable`] if there are too many open
    /// files.
    pub fn accept(&self, limit: impl Into<Option<Duration>>) -> Result<Socket, SocketError> {
        let (begin, limit) = (Instant::now(), limit.into().unwrap_or(Duration::MAX));
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let descriptor = match self {
                Self::Tcp(listener) => listener.as_fd(),
                Self::Unix(listener, _) => listener.as_fd(),
            };
            if !wait_for_input(descriptor, left)? {
                let (address, waited) = (self.address()?, begin.elapsed());
                return Err(SocketError::NobodyCame { address, waited });
            }
            let socket = match self {
                Self::Tcp(listener) => {
                    listener.accept().and_then(|(socket, _)| Socket::set_up(socket))
                }
                Self::Unix(listener, _) => listener.accept().map(|(socket, _)| socket.into()),
            };
            match socket {
                // The peer has closed it already.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                socket => return Ok(socket?),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
