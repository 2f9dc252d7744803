//! Who takes a log's bits: they can be taken once.

use std::sync::Arc;

use ram_block::{DirtyClient, RamBlock};

/// A client's log of one block, or of all of them. What is claimed is the bits, and
/// they are the block's, whichever region shows it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) block: Option<Arc<RamBlock>>,
    pub(crate) client: DirtyClient,
    /// Which one it is, once it is taken.
    pub(crate) number: u64,
}

impl Claim {
    /// Whether both want the same bits.
    fn meets(&self, other: &Self) -> bool {
        let same_block = |(a, b): (&Arc<RamBlock>, &Arc<RamBlock>)| Arc::ptr_eq(a, b);
        self.client == other.client
            && self.block.as_ref().zip(other.block.as_ref()).is_none_or(same_block)
    }
}

/// The claims of a map that stand.
#[derive(Default)]
pub(crate) struct Claims {
    claims: Vec<Claim>,
    /// How many were taken so far.
    taken: u64,
}

impl Claims {
    /// Takes a claim; false if somebody else has it, or a part of it.
    pub(crate) fn take(&mut self, claim: &mut Claim) -> bool {
        let free = !self.claims.iter().any(|other| other.meets(claim));
        if free {
            self.taken += 1;
            claim.number = self.taken;
            self.claims.push(claim.clone());
        }
        free
    }

    /// Whether the claim still stands: its client may be gone, and its number another's.
    pub(crate) fn has(&self, claim: &Claim) -> bool {
        self.claims.iter().any(|other| other.number == claim.number)
    }

    /// Takes those that `gone` names off the list. They are to be dropped when the list
    /// is no longer locked: a block may be dropped with them, and what it was made of.
    #[must_use]
    pub(crate) fn end(&mut self, gone: impl Fn(&Claim) -> bool) -> Vec<Claim> {
        let (ended, stay) = std::mem::take(&mut self.claims).into_iter().partition(gone);
        self.claims = stay;
        ended
    }
}
