//! What ends in the middle of a change of the map, and so ends after it.

use ram_block::DirtyClient;

use crate::claims::Claim;
use crate::error::MapError;
use crate::map::MemoryMap;

/// What was dropped, and is to be switched off.
pub(crate) enum Leaving {
    /// A claim to a log.
    Log(Claim),
    /// A client that was registered with the map.
    Client(DirtyClient),
}

impl Leaving {
    fn end(&self, map: &MemoryMap) -> Result<(), MapError> {
        match self {
            Self::Client(client) => map.drop_name(*client),
            Self::Log(claim) => {
                // In one turn: the client's number may be another's afterwards.
                let switched = map.update(|edit| {
                    edit.ending = Some(claim.number);
                    match &claim.region {
                        _ if !map.claims().has(claim) => Ok(()), // gone with its client
                        Some((region, _)) => edit.set_log(*region, claim.client, false),
                        None => edit.set_global_log(claim.client, false),
                    }
                });
                if !matches!(switched, Err(MapError::Nested)) {
                    map.drop_claim(claim);
                }
                switched
            }
        }
    }

    fn client(&self) -> DirtyClient {
        match self {
            Self::Client(client) | Self::Log(Claim { client, .. }) => *client,
        }
    }
}

impl MemoryMap {
    /// Ends what was dropped; after its turn, if this thread is in the middle of one.
    pub(crate) fn end(&self, leaving: Leaving) {
        match leaving.end(self) {
            Ok(()) => {}
            Err(MapError::Nested) => self.leaving().push(leaving),
            // A client goes on to log, so nobody else gets its number.
            Err(error) => log::warn!("{} cannot be switched off: {error}", leaving.client()),
        }
    }
}

/// What could not end in a turn, and ends when this is dropped, after it.
pub(crate) struct AfterTurn<'a> {
    map: &'a MemoryMap,
    left: Vec<Leaving>,
}

impl<'a> AfterTurn<'a> {
    pub(crate) fn new(map: &'a MemoryMap) -> Self {
        Self { map, left: Vec::new() }
    }

    /// Takes what was dropped in the turn, which is not over yet: others have theirs later.
    pub(crate) fn gather(&mut self) {
        self.left = std::mem::take(&mut *self.map.leaving());
    }
}

impl Drop for AfterTurn<'_> {
    fn drop(&mut self) {
        for leaving in std::mem::take(&mut self.left) {
            self.map.end(leaving);
        }
    }
}
