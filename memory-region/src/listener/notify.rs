//! Telling listeners what changes, all of them or none.

use std::sync::Arc;

use crate::error::ListenerError;
use crate::error::MapError;
use crate::listener::change::{MemoryListener, ViewChange};

/// A listener, and what it is to follow.
pub(crate) struct Follower {
    pub(crate) listener: Arc<dyn MemoryListener>,
    /// The name of the address space that it follows.
    pub(crate) space: Arc<str>,
    pub(crate) change: Arc<ViewChange>,
}

impl Follower {
    fn refused(&self, source: ListenerError) -> MapError {
        let listener = self.listener.name().to_owned();
        MapError::Refused { listener, space: self.space.to_string(), source }
    }
}

/// Tells every listener what changes; if one refuses, takes the others back.
pub(crate) fn tell(followers: &[Follower]) -> Result<(), MapError> {
    for (at, follower) in followers.iter().enumerate().rev() {
        if let Err(source) = follower.listener.prepare(&follower.change) {
            cancel(&followers[at + 1..]);
            return Err(follower.refused(source));
        }
    }
    for (at, follower) in followers.iter().enumerate() {
        if let Err(source) = follower.listener.commit(&follower.change) {
            go_back(&followers[..at]);
            cancel(&followers[at..]);
            return Err(follower.refused(source));
        }
    }
    Ok(())
}

fn cancel(followers: &[Follower]) {
    for Follower { listener, change, .. } in followers {
        listener.cancel(change);
    }
}

/// Takes listeners that have followed back to the map before.
fn go_back(followers: &[Follower]) {
    let back: Vec<ViewChange> =
        followers.iter().map(|follower| follower.change.inverse()).collect();
    let fault = |follower: &Follower, error: ListenerError| {
        log::error!("{} cannot go back to the former map: {error}", follower.listener.name());
    };
    for (follower, inverse) in followers.iter().zip(&back).rev() {
        if let Err(error) = follower.listener.prepare(inverse) {
            fault(follower, error);
        }
    }
    for (follower, inverse) in followers.iter().zip(&back) {
        if let Err(error) = follower.listener.commit(inverse) {
            fault(follower, error);
        }
        mark_unlogged(&follower.change);
    }
}

/// Where the change did not log for a client that is on, what was stored meanwhile is
/// known to nobody: all of it may be dirty.
fn mark_unlogged(change: &ViewChange) {
    let sections = change.added.iter().chain(change.relogged.iter().map(|change| &change.section));
    for section in sections {
        if let Some(block) = section.ram() {
            if block.dirty().enabled().iter().any(|client| !section.log().contains(client)) {
                let len = u64::try_from(section.size()).unwrap_or(u64::MAX);
                block.dirty().mark(section.offset(), len);
            }
        }
    }
}
