//! Who takes a log's bits: they can be taken once.
//!
//! A claim of a map's log stands at two places. The map keeps a list, so that a claim of all
//! RAM meets one of a region. And each block whose client the claim has is claimed itself
//! ([`DirtyClaim`]), before the claim is given out and before anybody writes for the log: so
//! nobody takes its bits through another region, another map, or at the block. Blocks that join
//! the log of all RAM are claimed by the commit that brings them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ram_block::{ClientSet, DirtyClaim, DirtyClient, DirtyError, RamBlock};

use crate::error::MapError;
use crate::region_id::RegionId;
use crate::tree::topology::Logged;

/// A client's log of one block, or of all of them. What is claimed is the bits, and
/// they are the block's, whichever region shows it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The region that is logged, and its block; all RAM if there is none.
    pub(crate) region: Option<(RegionId, Arc<RamBlock>)>,
    pub(crate) client: DirtyClient,
    /// Which one it is, once it is taken.
    pub(crate) number: u64,
}

impl Claim {
    fn has(&self, block: &Arc<RamBlock>) -> bool {
        self.region.as_ref().is_none_or(|(_, own)| Arc::ptr_eq(own, block))
    }

    /// Whether both want the same bits.
    fn meets(&self, other: &Self) -> bool {
        let of_other = other.region.as_ref().is_none_or(|(_, block)| self.has(block));
        self.client == other.client && of_other
    }
}

/// A claim of the list.
struct Standing {
    claim: Claim,
    /// The blocks that it has claimed so far, by the addresses of their bitmaps.
    blocks: BTreeMap<usize, Arc<DirtyClaim>>,
}

fn key(block: &RamBlock) -> usize {
    Arc::as_ptr(block.dirty()).addr()
}

fn claimed(client: DirtyClient, block: &RamBlock) -> MapError {
    MapError::Claimed { client, what: format!("block \"{}\"", block.id()) }
}

impl Standing {
    fn of_block(&self, block: &RamBlock) -> Option<&Arc<DirtyClaim>> {
        self.blocks.get(&key(block))
    }
}

/// The claims of a map that stand.
#[derive(Default)]
pub(crate) struct Claims {
    claims: Vec<Standing>,
    /// How many were taken so far.
    taken: u64,
}

/// What a commit has claimed of blocks: to be dropped if it fails.
#[derive(Default)]
pub(crate) struct Claimed(Vec<Arc<DirtyClaim>>);

impl Claims {
    /// Adds a claim and numbers it; false if another one has some of its bits.
    pub(crate) fn take(&mut self, claim: &mut Claim) -> bool {
        let free = !self.claims.iter().any(|other| other.claim.meets(claim));
        if free {
            self.taken += 1;
            claim.number = self.taken;
            self.claims.push(Standing { claim: claim.clone(), blocks: BTreeMap::new() });
        }
        free
    }

    fn get(&self, number: u64) -> Option<&Standing> {
        self.claims.iter().find(|standing| standing.claim.number == number)
    }

    /// Whether the claim still stands: its client may be gone, and its number another's.
    pub(crate) fn has(&self, claim: &Claim) -> bool {
        self.get(claim.number).is_some()
    }

    /// What the claim of this number has of a block.
    pub(crate) fn of(&self, number: u64, block: &Arc<RamBlock>) -> Option<Arc<DirtyClaim>> {
        self.get(number)?.of_block(block).cloned()
    }

    /// What a claim of `client` has of a block.
    pub(crate) fn of_client(
        &self,
        client: DirtyClient,
        block: &Arc<RamBlock>,
    ) -> Option<Arc<DirtyClaim>> {
        let mut standing = self.claims.iter().filter(|other| other.claim.client == client);
        standing.find_map(|standing| standing.of_block(block)).cloned()
    }

    /// Whether a claim other than `ending` wants this log on: that of a region, or of all RAM.
    pub(crate) fn want_log(
        &self,
        region: Option<RegionId>,
        client: DirtyClient,
        ending: Option<u64>,
    ) -> bool {
        self.claims.iter().map(|standing| &standing.claim).any(|claim| {
            claim.client == client
                && claim.region.as_ref().map(|(id, _)| *id) == region
                && Some(claim.number) != ending
        })
    }

    /// The blocks that log for clients whose logs are claimed, and that are not yet claimed.
    fn unclaimed<'a>(
        &'a self,
        logged: &'a Logged,
    ) -> impl Iterator<Item = (usize, DirtyClient, &'a Arc<RamBlock>)> {
        self.claims.iter().enumerate().flat_map(move |(n, standing)| {
            let client = standing.claim.client;
            let wanted = move |(block, clients): &&(Arc<RamBlock>, ClientSet)| {
                clients.contains(client)
                    && standing.claim.has(block)
                    && standing.of_block(block).is_none()
            };
            logged.values().filter(wanted).map(move |(block, _)| (n, client, block))
        })
    }

    /// Whether [`claim_blocks`](Self::claim_blocks) would succeed now.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`].
    pub(crate) fn check_blocks(&self, logged: &Logged) -> Result<(), MapError> {
        let taken =
            self.unclaimed(logged).find(|(_, client, block)| block.dirty().is_claimed(*client));
        taken.map_or(Ok(()), |(_, client, block)| Err(claimed(client, block)))
    }

    /// Claims the blocks that log for clients whose logs are claimed.
    ///
    /// # Errors
    ///
    /// [`MapError::Claimed`] if another has claimed a block; nothing is claimed then.
    pub(crate) fn claim_blocks(&mut self, logged: &Logged) -> Result<Claimed, MapError> {
        let mut new = Claimed::default();
        let unclaimed: Vec<_> =
            self.unclaimed(logged).map(|(n, client, block)| (n, client, block.clone())).collect();
        for (n, client, block) in unclaimed {
            match block.dirty().claim(client) {
                Ok(held) => {
                    let held = Arc::new(held);
                    self.claims[n].blocks.insert(key(&block), held.clone());
                    new.0.push(held);
                }
                Err(error) => {
                    self.give_up(&new);
                    return Err(match error {
                        DirtyError::Claimed { client } => claimed(client, &block),
                        error => error.into(),
                    });
                }
            }
        }
        Ok(new)
    }

    /// Drops what a commit that fails has claimed.
    pub(crate) fn give_up(&mut self, new: &Claimed) {
        for standing in &mut self.claims {
            standing.blocks.retain(|_, held| !new.0.iter().any(|other| Arc::ptr_eq(held, other)));
        }
    }

    /// Drops what claims have of blocks that are not in the map any more.
    pub(crate) fn leave_blocks(&mut self, logged: &Logged) {
        let stay: BTreeSet<usize> = logged.values().map(|(block, _)| key(block)).collect();
        for standing in &mut self.claims {
            standing.blocks.retain(|at, _| stay.contains(at));
        }
    }

    /// Takes those that `gone` names off the list. They are to be dropped when the list
    /// is no longer locked: a block may be dropped with them, and what it was made of.
    #[must_use]
    pub(crate) fn end(&mut self, gone: impl Fn(&Claim) -> bool) -> Vec<Claim> {
        let is_gone = |standing: &Standing| gone(&standing.claim);
        let (ended, stay): (Vec<_>, _) =
            std::mem::take(&mut self.claims).into_iter().partition(is_gone);
        self.claims = stay;
        ended.into_iter().map(|standing| standing.claim).collect()
    }
}
