//! How long one side of a migration waits for the other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What has to come within an idle deadline, in bytes: a page. A peer that sends one byte a
/// second is as good as one that sends nothing.
const PROGRESS: u64 = 4096;

/// How long a migration waits for the other side, before it ends with an error that says what
/// was waited for: [`ReceiveError::TimedOut`](crate::ReceiveError::TimedOut),
/// [`SendError::TimedOut`](crate::SendError::TimedOut), or, for the receiver's last word,
/// [`SendError::NoAck`](crate::SendError::NoAck).
///
/// Each can be switched off by `None`: a source that may be held for long before it switches
/// over (QEMU's `pause-before-switchover`) needs a receiver without an idle deadline. Sockets keep
/// them, and a receiver that reads a pipe or a file; a source that writes to a pipe waits for as
/// long as its reader takes nothing. A [`ReadTransport`](crate::ReadTransport) of another
/// kind does if it has a [`wait`](crate::ReadTransport::wait), and a
/// [`WriteTransport`](crate::WriteTransport) if it has a
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
    /// 30 seconds for the handshake, 60 of silence, 60 for the answer, 1 for a description.
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
    /// Waits for ever, but for a description: one that is missing is no error.
    pub fn none() -> Self {
        Self { handshake: None, idle: None, answer: None, ..Self::default() }
    }

    /// How long the receiver waits for the beginning: what each connection says of itself, the
    /// stream's version and its configuration, all together.
    #[must_use]
    pub fn handshake(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.handshake = limit.into();
        self
    }

    /// How long nothing may happen on all connections together. For the receiver, less than
    /// 4,096 bytes count as nothing; for the source, less than what it hands to a connection at
    /// once, which is half a MiB at most. A source with a lower
    /// [limit of bandwidth](crate::Precopy::bandwidth) than 256 KiB in this time is silent for
    /// longer between two of its transfers: the receiver has to allow that.
    #[must_use]
    pub fn idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.idle = limit.into();
        self
    }

    /// How long the source waits for the receiver to say that it has everything, from the last
    /// byte that it sent on.
    #[must_use]
    pub fn answer(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.answer = limit.into();
        self
    }

    /// How long the receiver waits for a description behind the end of the stream. Nothing in
    /// the stream tells whether one follows, so on a connection that stays open a source that
    /// sends none (QEMU with `suppress-vmdesc=on`) is waited for this long; its guest stands
    /// still meanwhile, see
    /// [`Receiver::expect_vmdesc`](crate::Receiver::expect_vmdesc).
    #[must_use]
    pub fn description(mut self, limit: Duration) -> Self {
        self.description = limit;
        self
    }
}

/// The longest wait without a look at whether the migration is over.
const SLICE: Duration = Duration::from_millis(100);

/// What a receiver measures its deadlines by: all connections of a migration have one.
pub(crate) struct Clock {
    deadlines: Deadlines,
    state: Mutex<State>,
}

struct State {
    /// The handshake is not over.
    begins: bool,
    /// When what is waited for last made progress.
    since: Instant,
    /// Bytes since then.
    bytes: u64,
    /// Nothing is waited for any more.
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
        let state = State { begins: true, since: Instant::now(), bytes: 0, over: false };
        Self { deadlines, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handshake is over: from now on silence is measured.
    pub(crate) fn begun(&self) {
        let mut state = self.lock();
        (state.begins, state.since, state.bytes) = (false, Instant::now(), 0);
    }

    /// So many bytes have come on some connection.
    pub(crate) fn received(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_add(bytes as u64);
        if state.bytes >= PROGRESS && !state.begins {
            (state.since, state.bytes) = (Instant::now(), 0);
        }
    }

    /// The migration is over: waiting ends.
    pub(crate) fn end(&self) {
        self.lock().over = true;
    }

    /// How long to wait before this is asked again.
    pub(crate) fn next(&self) -> Wait {
        let state = self.lock();
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
    /// For so long, then it asks again.
    Within(Duration),
    /// Not any more: it has waited for so long.
    Last(Duration),
    /// Nothing matters that comes.
    Over,
}
