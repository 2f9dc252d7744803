//! The connections between the two sides of a migration, and how they agree on who runs.
//!
//! The stream says that the destination has everything; that the source has let go is a word
//! of its own behind it. So there is no moment in which both run, and none in which neither
//! does unless the connection breaks in just that one: then the source has let go, and the
//! destination, which has everything, says that it was not told.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

pub use migration_ram::{Address, Listener, Socket, SocketError};
use migration_ram::{IncomingChannels, OutgoingChannels, ReadTransport, WriteTransport};

use crate::deadline::seconds;

/// How long one side of a connection that is to be made waits for the other, in seconds.
const PATIENCE: u64 = 10;
/// How long a word is waited for: memory may be compared before it is said.
const WORD: Duration = Duration::from_secs(120);

/// All connections of a migration.
#[derive(Debug)]
pub struct Link {
    main: Socket,
    channels: Vec<Socket>,
    /// The same socket as `main`, for the other direction.
    answers: Socket,
}

impl Link {
    fn new(main: Socket, channels: Vec<Socket>) -> Result<Self, SocketError> {
        Ok(Self { answers: main.try_clone()?, main, channels })
    }

    /// Connects to a destination; `channels` connections besides the first carry pages.
    ///
    /// # Errors
    ///
    /// If nobody listens there within ten seconds.
    pub fn connect(address: &Address, channels: usize) -> Result<Self, SocketError> {
        let connect = || Socket::connect(address, seconds(PATIENCE));
        let main = connect()?;
        let channels = (0..channels).map(|_| connect()).collect::<Result<_, _>>()?;
        Self::new(main, channels)
    }

    /// Waits for a source, as long as it takes, and then for so many channels.
    ///
    /// # Errors
    ///
    /// If a connection cannot be accepted, or a channel does not come within ten seconds.
    pub fn accept(listener: &Listener, channels: usize) -> Result<Self, SocketError> {
        let main = listener.accept(None)?;
        let channels = (0..channels).map(|_| listener.accept(seconds(PATIENCE)));
        Self::new(main, channels.collect::<Result<_, _>>()?)
    }

    /// For [`Precopy::run`](migration_ram::Precopy::run).
    pub fn outgoing(&mut self) -> OutgoingChannels<'_> {
        let channels = self.channels.iter_mut().map(|channel| channel as &mut dyn WriteTransport);
        OutgoingChannels::new(&mut self.main).channels(channels).return_path(&mut self.answers)
    }

    /// For [`Receiver::run`](migration_ram::Receiver::run).
    pub fn incoming(&mut self) -> IncomingChannels<'_> {
        let channels = self.channels.iter_mut().map(|channel| channel as &mut dyn ReadTransport);
        let main: &mut dyn ReadTransport = &mut self.main;
        IncomingChannels::several([main].into_iter().chain(channels)).return_path(&mut self.answers)
    }

    /// Says something to the other side, when the stream is over.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.main.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits for what the other side says, a line of at most 64 KiB, for two minutes at most.
    ///
    /// # Errors
    ///
    /// If it is gone, says nothing, or something else than a line of text.
    pub fn hear(&mut self) -> io::Result<String> {
        let (begin, mut line) = (Instant::now(), Vec::new());
        // Byte by byte: what follows the line is none of it.
        while line.len() < 1 << 16 {
            if !self.main.wait(WORD.saturating_sub(begin.elapsed()))? {
                let text = format!("The other side said nothing within {WORD:.1?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let mut byte = [0];
            match (self.main.read(&mut byte)?, byte) {
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (_, [b'\n']) => {
                    return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into());
                }
                (_, [byte]) => line.push(byte),
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}
