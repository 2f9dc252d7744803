//! Dirty logs started and stopped.

use std::sync::Arc;

use ram_block::{Claimant, ClientSet, DirtyClient, DirtyError, RamBlock};

use crate::error::MapError;
use crate::region_id::RegionId;
use crate::transaction::regions::Transaction;
use crate::tree::log::Log;

impl Transaction<'_> {
    /// Adds a log of one RAM region, or of all RAM; on from the commit on.
    ///
    /// # Errors
    ///
    /// [`MapError::NotRam`], [`MapError::UnknownRegion`], [`MapError::Claimed`],
    /// [`MapError::Dirty`] for the code client or if no number is free for a name.
    pub(crate) fn start_log(
        &mut self,
        region: Option<RegionId>,
        claimant: &Claimant,
    ) -> Result<Arc<Log>, MapError> {
        let block = region.map(|region| self.block_to_log(region, claimant)).transpose()?;
        let client = match claimant.client() {
            Some(DirtyClient::CODE) => return Err(DirtyError::CodeClient.into()),
            Some(client) => client,
            None => self.free_client(block.as_ref(), claimant)?,
        };
        // Bits can be taken once, and they are the block's, whichever region shows it.
        if let Some(other) = self.logs_that_meet(block.as_ref()).find(|log| log.client == client) {
            let region = region.map(|region| format!("\"{}\"", self.topology.name(region)));
            let what = region.unwrap_or_else(|| "all RAM".to_owned());
            return Err(MapError::Claimed { client, what, by: other.name().to_owned() });
        }
        let log = Arc::new(Log::new(client, claimant.name(), region));
        self.topology.logs.push(log.clone());
        Ok(log)
    }

    /// Removes a log; off from the commit on.
    pub(crate) fn stop_log(&mut self, log: &Arc<Log>) {
        self.topology.logs.retain(|other| !Arc::ptr_eq(other, log));
    }

    fn block_to_log(
        &self,
        region: RegionId,
        claimant: &Claimant,
    ) -> Result<Arc<RamBlock>, MapError> {
        let region = self.topology.get(region)?;
        region.block().cloned().ok_or_else(|| {
            let (name, client) = (region.name.to_string(), claimant.name().to_owned());
            MapError::NotRam { name, client }
        })
    }

    /// The logs that have bits of `block`, or of any block if there is none.
    fn logs_that_meet(&self, block: Option<&Arc<RamBlock>>) -> impl Iterator<Item = &Arc<Log>> {
        self.topology.logs.iter().filter(move |log| {
            let Some(region) = log.region else { return true };
            // If the region is gone, its log has no bits any more.
            let own = self.topology.block_of(region);
            own.is_some_and(|own| block.is_none_or(|block| Arc::ptr_eq(own, block)))
        })
    }

    /// The first number that is not built in, and that nobody has for `block`, or for any block if
    /// there is none.
    fn free_client(
        &self,
        block: Option<&Arc<RamBlock>>,
        claimant: &Claimant,
    ) -> Result<DirtyClient, MapError> {
        let here = self.logs_that_meet(block).map(|log| log.client).collect::<ClientSet>();
        let blocks = self
            .topology
            .blocks()
            .filter(|other| block.is_none_or(|block| Arc::ptr_eq(block, other)));
        let taken = blocks.fold(here, |taken, block| taken.union(block.dirty().enabled()));
        let free = DirtyClient::dynamic().find(|client| !taken.contains(*client));
        let too_many = || DirtyError::TooManyClients { name: claimant.name().to_owned() };
        Ok(free.ok_or_else(too_many)?)
    }
}
