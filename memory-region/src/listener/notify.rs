//! Notifying listeners of a change: all of them follow it, or none does.

use std::sync::Arc;

use crate::error::{ListenerError, MapError};
use crate::listener::change::{MemoryListener, ViewChange};

/// What one listener is notified of.
pub(crate) struct Notification {
    pub(crate) listener: Arc<dyn MemoryListener>,
    /// The name of the listener's address space, for errors.
    pub(crate) space: Arc<str>,
    pub(crate) change: Arc<ViewChange>,
}

impl Notification {
    fn refused(&self, source: ListenerError) -> MapError {
        let listener = self.listener.name().to_owned();
        MapError::Refused { listener, space: self.space.to_string(), source }
    }
}

/// Notifies every listener: `prepare` from the last to the first, then `commit` from the first to
/// the last. If one refuses, those before it are rolled back.
///
/// # Errors
///
/// [`MapError::Refused`].
pub(crate) fn notify_all(notifications: &[Notification]) -> Result<(), MapError> {
    for (at, notification) in notifications.iter().enumerate().rev() {
        if let Err(source) = notification.listener.prepare(&notification.change) {
            cancel(&notifications[at + 1..]);
            return Err(notification.refused(source));
        }
    }
    for (at, notification) in notifications.iter().enumerate() {
        if let Err(source) = notification.listener.commit(&notification.change) {
            roll_back(&notifications[..at]);
            cancel(&notifications[at..]);
            return Err(notification.refused(source));
        }
    }
    Ok(())
}

fn cancel(notifications: &[Notification]) {
    for Notification { listener, change, .. } in notifications {
        listener.cancel(change);
    }
}

/// Notifies listeners that have committed of the inverse change. One that refuses that as well
/// is out of step: the error is logged.
fn roll_back(notifications: &[Notification]) {
    let back: Vec<ViewChange> =
        notifications.iter().map(|notification| notification.change.inverse()).collect();
    let fault = |notification: &Notification, error: ListenerError| {
        log::error!("{} cannot roll back to the former map: {error}", notification.listener.name());
    };
    for (notification, inverse) in notifications.iter().zip(&back).rev() {
        if let Err(error) = notification.listener.prepare(inverse) {
            fault(notification, error);
        }
    }
    for (notification, inverse) in notifications.iter().zip(&back) {
        if let Err(error) = notification.listener.commit(inverse) {
            fault(notification, error);
        }
        mark_unlogged(&notification.change);
    }
}

/// Marks all pages of sections that the change, while it was committed, did not log for a client
/// that is on: no log knows what a guest stored there meanwhile.
fn mark_unlogged(change: &ViewChange) {
    let sections =
        change.added.iter().chain(change.log_changed.iter().map(|change| &change.section));
    for section in sections {
        if let Some(block) = section.ram() {
            if block.dirty().enabled().iter().any(|client| !section.log().contains(client)) {
                let len = u64::try_from(section.size()).unwrap_or(u64::MAX);
                block.dirty().mark(section.offset(), len);
            }
        }
    }
}
