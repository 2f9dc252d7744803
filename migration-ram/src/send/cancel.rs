//! Cancels a migration.

use std::sync::{Arc, Mutex};

use crate::error::SendError;
use crate::locks::lock;
use crate::wire::transport::ShutdownHandle;

/// Cancels a migration from another thread, or from its observer.
///
/// A clone cancels the same migration.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    end: bool,
    /// The connections of the migration under way.
    hang_ups: Vec<ShutdownHandle>,
}

impl Cancel {
    /// The migration under way, or else the next one, ends with [`SendError::Cancelled`],
    /// unless it completes first. If everything was sent already, it ends with
    /// [`SendError::NoAck`]: the destination may have received all of it.
    ///
    /// Its sockets are shut down, so that it does not wait for a receiver that stopped reading;
    /// with other transports it ends when the transfer under way does.
    pub fn cancel(&self) {
        let mut asked = lock(&self.0);
        asked.end = true;
        asked.hang_ups.iter().for_each(ShutdownHandle::hang_up);
    }

    /// A migration begins; `hang_ups` are its connections.
    pub(crate) fn begin(&self, hang_ups: Vec<ShutdownHandle>) {
        lock(&self.0).hang_ups = hang_ups;
    }

    /// A migration is over. If it failed and was cancelled, the error is `Cancelled`.
    pub(crate) fn end<T>(&self, result: Result<T, SendError>) -> Result<T, SendError> {
        let mut asked = lock(&self.0);
        asked.hang_ups.clear();
        // Reset in any case: a request that came too late must not cancel the next migration.
        let cancelled = std::mem::take(&mut asked.end);
        result.map_err(|error| match error {
            // All was sent: the destination may have everything, so even a cancelled migration
            // must report this.
            SendError::NoAck { .. } | SendError::ReturnPath { .. } => error,
            _ if cancelled => SendError::Cancelled,
            error => error,
        })
    }

    /// An error if `cancel` was called.
    pub(crate) fn check(&self) -> Result<(), SendError> {
        if lock(&self.0).end { Err(SendError::Cancelled) } else { Ok(()) }
    }
}
