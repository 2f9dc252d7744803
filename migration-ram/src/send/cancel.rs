//! The end of a migration on request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::SendError;
use crate::wire::transport::ShutdownHandle;

/// Ends a migration from another thread, or from its observer.
///
/// A clone of it ends the same migration.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    end: bool,
    /// Of the connections of the migration under way.
    hang_ups: Vec<ShutdownHandle>,
}

impl Cancel {
    /// The migration under way, or else the next one, ends with [`SendError::Cancelled`],
    /// unless it completes first. Once everything was sent, it ends with
    /// [`SendError::NoAck`]: the destination may have all of it.
    ///
    /// Its sockets are shut down, so it does not wait for a receiver that takes nothing;
    /// with other outputs it ends when the transfer under way does.
    pub fn cancel(&self) {
        let mut asked = self.lock();
        asked.end = true;
        asked.hang_ups.iter().for_each(ShutdownHandle::hang_up);
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A migration begins, over these connections.
    pub(crate) fn begin(&self, hang_ups: Vec<ShutdownHandle>) {
        self.lock().hang_ups = hang_ups;
    }

    /// A migration is over; the error is that of a cancel, if there was one.
    pub(crate) fn end<T>(&self, result: Result<T, SendError>) -> Result<T, SendError> {
        let mut asked = self.lock();
        asked.hang_ups.clear();
        // One that has completed was asked too late. Whoever asked has an answer.
        let cancelled = std::mem::take(&mut asked.end);
        result.map_err(|error| match error {
            // All was sent: whether the destination has it is not known, whoever asked for what.
            SendError::NoAck { .. } | SendError::ReturnPath { .. } => error,
            _ if cancelled => SendError::Cancelled,
            error => error,
        })
    }

    /// An error if somebody asked for the end.
    pub(crate) fn check(&self) -> Result<(), SendError> {
        if self.lock().end { Err(SendError::Cancelled) } else { Ok(()) }
    }
}
