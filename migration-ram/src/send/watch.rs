//! The source's idle deadline: ends the migration if the receiver stops reading.
//!
//! A single transfer cannot have a deadline: the kernel copies from guest memory until it has
//! sent all of a list. So a thread watches the transfers, and shuts all connections down if none
//! was completed for too long.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ram_block::{SendList, TransferError};

use crate::error::SendError;
use crate::host::Instant;
use crate::locks::{lock, unpoisoned};
use crate::wire::transport::{ShutdownHandle, WriteTransport};

struct TransferState {
    /// The connections of the transfers under way.
    under_way: Vec<usize>,
    /// When the last transfer was completed, or the first of those under way began.
    since: Instant,
    /// The connection of the transfer that expired, and for how long it waited.
    expired: Option<(usize, Duration)>,
    over: bool,
}

/// Watches all connections of a migration.
pub(super) struct Watch {
    idle: Option<Duration>,
    hang_ups: Vec<ShutdownHandle>,
    state: Mutex<TransferState>,
    changed: Condvar,
}

impl Watch {
    pub(super) fn new(idle: Option<Duration>, hang_ups: Vec<ShutdownHandle>) -> Self {
        let (under_way, since) = (Vec::new(), Instant::now());
        let state = Mutex::new(TransferState { under_way, since, expired: None, over: false });
        Self { idle, hang_ups, state, changed: Condvar::new() }
    }

    /// A transfer over this connection begins.
    fn begin(&self, connection: usize) {
        let mut state = lock(&self.state);
        if state.under_way.is_empty() {
            state.since = Instant::now();
            // The watching thread sleeps as long as nothing is under way.
            self.changed.notify_all();
        }
        state.under_way.push(connection);
    }

    /// A transfer over this connection has ended, with or without an error.
    fn end(&self, connection: usize) {
        let mut state = lock(&self.state);
        if let Some(place) = state.under_way.iter().position(|other| *other == connection) {
            state.under_way.remove(place);
        }
        state.since = Instant::now();
    }

    /// Watches until the migration is over.
    pub(super) fn run(&self) {
        let Some(idle) = self.idle else { return };
        let mut state = lock(&self.state);
        while !state.over {
            let waited = state.since.elapsed();
            let first = state.under_way.first().copied();
            let wait = match first {
                Some(connection) if waited >= idle => {
                    state.expired = Some((connection, waited));
                    drop(state);
                    self.hang_ups.iter().for_each(ShutdownHandle::hang_up);
                    return;
                }
                Some(_) => idle - waited,
                None => Duration::MAX,
            };
            state = unpoisoned(self.changed.wait_timeout(state, wait)).0;
        }
    }

    /// Dropping the result ends `run`.
    pub(super) fn until_dropped(&self) -> impl Drop {
        struct Over<'a>(&'a Watch);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                lock(&self.0.state).over = true;
                self.0.changed.notify_all();
            }
        }
        Over(self)
    }

    /// Replaces a connection's error by `TimedOut` if this watch has shut the connections down.
    pub(super) fn explain(&self, error: SendError) -> SendError {
        let Some((connection, waited)) = lock(&self.state).expired else { return error };
        let sent = match error {
            SendError::Write { sent, .. } | SendError::Channel { sent, .. } => sent,
            other => return other,
        };
        SendError::TimedOut { channel: connection.checked_sub(1), sent, waited }
    }
}

/// A connection whose transfers are watched: number 0 is the main stream, channels follow.
pub(super) struct Watched<'a> {
    pub(super) output: &'a mut dyn WriteTransport,
    pub(super) connection: usize,
    pub(super) watch: Arc<Watch>,
}

impl WriteTransport for Watched<'_> {
    fn send(&mut self, list: &mut SendList<'_>) -> Result<(), TransferError> {
        self.watch.begin(self.connection);
        let sent = self.output.send(list);
        self.watch.end(self.connection);
        sent
    }

    fn hang_up(&self) -> Option<ShutdownHandle> {
        self.output.hang_up()
    }
}
