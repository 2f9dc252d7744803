//! The connections between the two sides of a migration, and how they agree on who runs.
//!
//! The stream says that the destination has everything; that the source has let go is a word
//! of its own behind it. So there is no moment in which both run, and none in which neither
//! does unless the connection breaks in just that one: then the source has let go, and the
//! destination, which has everything, says that it was not told.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use migration_ram::{HangUp, Incoming, Input, Outgoing, Output};
use ram_block::{ReceiveList, SendList, TransferError};

/// How long a source tries to reach a destination that is about to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a destination listens: `HOST:PORT`, or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host's name or address, and a port.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.strip_prefix("unix:"), text.rsplit_once(':')) {
            (Some(path), _) if !path.is_empty() => Ok(Self::Unix(path.into())),
            (None, Some((host, port))) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(format!("\"{text}\" is neither HOST:PORT nor unix:PATH")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP, without delay.
    Tcp(TcpStream),
    /// Within this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a destination that listens, or is about to.
    ///
    /// # Errors
    ///
    /// If nobody listens there within ten seconds.
    pub fn connect(address: &Address) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let socket = match address {
                Address::Tcp(address) => TcpStream::connect(address).and_then(Self::tcp),
                Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            };
            match socket {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
                socket => return socket,
            }
        }
    }

    fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self::Tcp(socket))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(bytes),
            Self::Unix(socket) => socket.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Socket {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        match self {
            Self::Tcp(socket) => socket.send(list),
            Self::Unix(socket) => socket.send(list),
        }
    }

    fn hang_up(&self) -> Option<HangUp> {
        match self {
            Self::Tcp(socket) => Output::hang_up(socket),
            Self::Unix(socket) => Output::hang_up(socket),
        }
    }
}

impl Input for Socket {
    fn receive(&mut self, list: &mut ReceiveList<'_>) -> Result<usize, TransferError> {
        match self {
            Self::Tcp(socket) => socket.receive(list),
            Self::Unix(socket) => socket.receive(list),
        }
    }

    fn hang_up(&self) -> Option<HangUp> {
        match self {
            Self::Tcp(socket) => Input::hang_up(socket),
            Self::Unix(socket) => Input::hang_up(socket),
        }
    }
}

/// All connections of a migration.
#[derive(Debug)]
pub struct Link {
    main: Socket,
    channels: Vec<Socket>,
    /// The same socket as `main`, for the other direction.
    answers: Socket,
}

impl Link {
    fn new(main: Socket, channels: Vec<Socket>) -> io::Result<Self> {
        Ok(Self { answers: main.try_clone()?, main, channels })
    }

    /// Connects to a destination; `channels` connections besides the first carry pages.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub fn connect(address: &Address, channels: usize) -> io::Result<Self> {
        let main = Socket::connect(address)?;
        let channels = (0..channels).map(|_| Socket::connect(address)).collect::<Result<_, _>>()?;
        Self::new(main, channels)
    }

    /// For [`Precopy::run`](migration_ram::Precopy::run).
    pub fn outgoing(&mut self) -> Outgoing<'_> {
        let channels = self.channels.iter_mut().map(|channel| channel as &mut dyn Output);
        Outgoing::new(&mut self.main).channels(channels).answers(&mut self.answers)
    }

    /// For [`Receiver::run`](migration_ram::Receiver::run).
    pub fn incoming(&mut self) -> Incoming<'_> {
        let channels = self.channels.iter_mut().map(|channel| channel as &mut dyn Input);
        let main: &mut dyn Input = &mut self.main;
        Incoming::several([main].into_iter().chain(channels)).answers(&mut self.answers)
    }

    /// Says something to the other side, when the stream is over.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.main.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits for what the other side says, a line of at most 64 KiB.
    ///
    /// # Errors
    ///
    /// If it is gone, or says something else than text.
    pub fn hear(&mut self) -> io::Result<String> {
        // Nothing is said before the last was answered: no more than a line is buffered.
        let mut line = String::new();
        BufReader::new((&mut self.main).take(1 << 16)).read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A destination that listens.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// Within this machine; the socket's file goes with it.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at an address; port 0 is a free one.
    ///
    /// # Errors
    ///
    /// If it is taken, or not ours.
    pub fn bind(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Self::Unix(UnixListener::bind(path)?, path.clone()),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// If the operating system does not say.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Self::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Waits for one connection.
    ///
    /// # Errors
    ///
    /// If it cannot be accepted.
    pub fn accept_one(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => Socket::tcp(listener.accept()?.0),
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept()?.0)),
        }
    }

    /// Waits for a source with so many channels.
    ///
    /// # Errors
    ///
    /// If a connection cannot be accepted.
    pub fn accept(&self, channels: usize) -> io::Result<Link> {
        let main = self.accept_one()?;
        let channels = (0..channels).map(|_| self.accept_one()).collect::<Result<_, _>>()?;
        Link::new(main, channels)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
