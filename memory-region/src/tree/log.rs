//! A client's dirty log: of which RAM, and what it has claimed of the blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_block::{Claimant, ClientSet, DirtyClaim, DirtyClient, DirtyError, RamBlock};

use crate::error::MapError;
use crate::region_id::RegionId;

/// The clients that log each block, by its address, which stays as it is kept here.
pub(crate) type Logged = BTreeMap<usize, (Arc<RamBlock>, ClientSet)>;

/// The address of a block.
pub(crate) fn address_of(block: &Arc<RamBlock>) -> usize {
    Arc::as_ptr(block).addr()
}

/// A log that is part of the tree from the commit that starts it to the one that stops it. Shared
/// by the copies of the tree and by the claim that takes its bits.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) client: DirtyClient,
    /// The claimant's name, which errors show.
    name: String,
    /// The region that is logged; all RAM, present and future, if there is none.
    pub(crate) region: Option<RegionId>,
    /// What it has claimed of the blocks that are logged, by their addresses. Never locked while
    /// listeners or devices are called.
    claims: Mutex<BTreeMap<usize, Arc<DirtyClaim>>>,
}

impl Log {
    pub(crate) fn new(client: DirtyClient, name: &str, region: Option<RegionId>) -> Self {
        Self { client, name: name.to_owned(), region, claims: Mutex::default() }
    }

    fn claims(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<DirtyClaim>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the client's bits of a block, which switches it on there; with all pages dirty, if
    /// `all_dirty`, before anybody can take bits.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`] if another map has them, or somebody at the block;
    /// [`MapError::Dirty`].
    pub(crate) fn start(&self, block: &Arc<RamBlock>, all_dirty: bool) -> Result<(), MapError> {
        let claimed = block.dirty().claim(Claimant::named(self.client, &self.name));
        let claimed = claimed.map_err(|error| match error {
            DirtyError::Claimed { client, by } => {
                let what = format!("block \"{}\"", block.id());
                MapError::Claimed { client, what, by }
            }
            error => error.into(),
        })?;
        if all_dirty {
            claimed.give_back(&(0..block.pages()));
        }
        self.claims().insert(address_of(block), Arc::new(claimed));
        Ok(())
    }

    /// Switches the client off in the block of this address, also for harvests that are under way.
    pub(crate) fn stop(&self, block: usize) {
        let claim = self.claims().remove(&block);
        if let Some(claim) = claim {
            claim.end();
        }
    }

    /// What it has claimed of a block.
    ///
    /// # Errors
    ///
    /// [`MapError::NotLogged`].
    pub(crate) fn of(&self, block: &Arc<RamBlock>) -> Result<Arc<DirtyClaim>, MapError> {
        let claim = self.claims().get(&address_of(block)).cloned();
        claim.ok_or_else(|| {
            let (client, block) = (self.client, block.id().to_owned());
            MapError::NotLogged { client, block }
        })
    }

    /// Whose log this is, for errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
