//! How long one side of a migration waits for the other.

use std::sync::Mutex;
use std::time::Duration;

use crate::host::Instant;
use crate::locks::lock;

/// The fewest bytes that reset the idle deadline: a page. So a peer that sends one byte a second
/// expires as one that sends nothing.
const MIN_PROGRESS: u64 = 4096;

/// How long each side of a migration waits for the other, before it fails with
/// [`ReceiveError::TimedOut`](crate::ReceiveError::TimedOut),
/// [`SendError::TimedOut`](crate::SendError::TimedOut), or, if the receiver's acknowledgement is
/// missing, [`SendError::NoAck`](crate::SendError::NoAck).
///
/// `None` disables a deadline: disable the receiver's idle deadline if its source may wait for
/// long before the switchover (QEMU's `pause-before-switchover`). Deadlines work on sockets, and
/// for a receiver that reads a pipe or a file; a source that writes to a pipe waits for its reader
/// without a deadline. With another [`ReadTransport`](crate::ReadTransport) they work if it
/// implements [`wait`](crate::ReadTransport::wait), and with another
/// [`WriteTransport`](crate::WriteTransport) if it implements
/// [`hang_up`](crate::WriteTransport::hang_up).
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use migration_ram::{Deadlines, Receiver};
///
/// let deadlines = Deadlines::default().handshake(Duration::from_secs(5)).idle(None);
/// let receiver = Receiver::new(&[]).deadlines(deadlines);
/// # drop(receiver);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    pub(crate) handshake: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) answer: Option<Duration>,
    pub(crate) description: Duration,
}

impl Default for Deadlines {
    /// 30 seconds for the handshake, 60 idle, 60 for the answer, 1 for the description.
    fn default() -> Self {
        Self {
            handshake: Some(Duration::from_secs(30)),
            idle: Some(Duration::from_secs(60)),
            answer: Some(Duration::from_secs(60)),
            description: Duration::from_secs(1),
        }
    }
}

impl Deadlines {
    /// No deadlines, except for the description: a missing one is no error.
    pub fn none() -> Self {
        Self { handshake: None, idle: None, answer: None, ..Self::default() }
    }

    /// How long the receiver waits for the beginning of the stream: the first bytes of each
    /// connection, the stream's version and its configuration, all together.
    #[must_use]
    pub fn handshake(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.handshake = limit.into();
        self
    }

    /// How long all connections together may be without progress. Progress is, for the receiver,
    /// 4,096 bytes; for the source, a completed transfer, which is half a MiB at most. A source
    /// whose [bandwidth limit](crate::Precopy::bandwidth) is lower than 256 KiB in this time
    /// waits longer than that between two transfers: the receiver needs a longer deadline.
    #[must_use]
    pub fn idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.idle = limit.into();
        self
    }

    /// How long the source waits for the receiver's acknowledgement (MIG_RP_MSG_SHUT) after its
    /// last byte.
    #[must_use]
    pub fn answer(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.answer = limit.into();
        self
    }

    /// How long the receiver waits for a description (vmdesc) after the end of the stream. The
    /// stream does not say whether one follows. So if the source sends none (QEMU with
    /// `suppress-vmdesc=on`) and keeps the connection open, the receiver waits for this long, and
    /// the guest is paused meanwhile: see
    /// [`Receiver::expect_vmdesc`](crate::Receiver::expect_vmdesc).
    #[must_use]
    pub fn description(mut self, limit: Duration) -> Self {
        self.description = limit;
        self
    }
}

/// The longest wait between two checks whether the migration is over.
const SLICE: Duration = Duration::from_millis(100);

/// Measures the receiver's deadlines; all connections of a migration share one.
pub(crate) struct Clock {
    deadlines: Deadlines,
    state: Mutex<ClockState>,
}

struct ClockState {
    /// Whether the handshake is still under way.
    begins: bool,
    /// When the handshake began, or the last progress was made.
    since: Instant,
    /// Bytes since then.
    bytes: u64,
    /// Whether the migration is over: waiting ends.
    over: bool,
}

impl Default for Clock {
    /// Without deadlines.
    fn default() -> Self {
        Self::new(Deadlines::none())
    }
}

impl Clock {
    pub(crate) fn new(deadlines: Deadlines) -> Self {
        let state = ClockState { begins: true, since: Instant::now(), bytes: 0, over: false };
        Self { deadlines, state: Mutex::new(state) }
    }

    /// The handshake is over: from now on the idle deadline applies.
    pub(crate) fn begun(&self) {
        let mut state = lock(&self.state);
        (state.begins, state.since, state.bytes) = (false, Instant::now(), 0);
    }

    /// Some connection has received `bytes` bytes.
    pub(crate) fn received(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.bytes = state.bytes.saturating_add(bytes as u64);
        if state.bytes >= MIN_PROGRESS && !state.begins {
            (state.since, state.bytes) = (Instant::now(), 0);
        }
    }

    /// The migration is over: all connections stop waiting.
    pub(crate) fn end(&self) {
        lock(&self.state).over = true;
    }

    /// How long a connection is to wait before it calls this again.
    pub(crate) fn next(&self) -> Wait {
        let state = lock(&self.state);
        let Deadlines { handshake, idle, .. } = self.deadlines;
        let limit = if state.begins { handshake } else { idle };
        let waited = state.since.elapsed();
        match limit.map(|limit| limit.saturating_sub(waited)) {
            _ if state.over => Wait::Over,
            Some(Duration::ZERO) => Wait::Last(waited),
            Some(left) => Wait::Within(left.min(SLICE)),
            None => Wait::Within(SLICE),
        }
    }

    pub(crate) fn description(&self) -> Duration {
        self.deadlines.description
    }
}

/// How long a receiver waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// For this time, then it asks again.
    Within(Duration),
    /// No longer: the deadline has expired, after this time.
    Last(Duration),
    /// No longer: the migration is over.
    Over,
}
