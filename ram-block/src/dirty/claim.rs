//! Claims: a client's log is on as long as its claim exists, and only the claim takes its bits.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use crate::bitmap::page_set::PageSet;
use crate::dirty::client::{Claimant, DirtyClient};
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::switch::no_memory;

/// One client's dirty log of one block. It is on as long as this exists, and only this can take its
/// bits.
///
/// Each bit can be taken once, so each client has one claim. A second one, by a second migration or
/// a second screen of the same memory, is an error. Threads that share a claim and harvest at the
/// same time split the bits in an unspecified way.
///
/// It counts in *pages* of the block. The claims of `memory-region`, which know where a block is
/// mapped, are given bytes.
///
/// Dropping it switches the client off, frees its bitmap, and leaves its number to others. The
/// bits of a [`Harvest`](crate::Harvest) that is dropped later are not given back to the next
/// client of that number.
#[must_use = "the log is switched off when this is dropped"]
pub struct DirtyClaim {
    pub(super) dirty: Arc<DirtyMemory>,
    pub(super) client: DirtyClient,
    /// How often the client had been switched off before: another count means that this claim has
    /// ended, and that the bits may be another's.
    pub(super) disable_count: u64,
}

impl DirtyMemory {
    /// Claims a client's log and switches it on: every write from now on marks it, and only the
    /// claim can take the marks.
    ///
    /// The claimant is a [`DirtyClient`], or a name, for which the first number is chosen that is
    /// free and not built in.
    ///
    /// **What guests write through an accelerator is not in this log**: it has what this process
    /// writes, and what others [`merge`](Self::merge) of their own accord. For a block that is in a
    /// memory map, claim the log at the map that the accelerator follows (`MemoryMap::claim_log`
    /// of `memory-region`), which makes it log.
    ///
    /// Earlier writes are not in the log, so a client that mirrors memory begins by taking all of
    /// it. A page whose write was under way is either marked, or has its new contents in memory
    /// when this returns: a client that reads pages afterwards misses neither.
    ///
    /// ```
    /// use ram_block::{DirtyClient, DirtyError, RamBlock};
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let migration = ram.dirty().claim(DirtyClient::MIGRATION)?;
    /// let reset = ram.dirty().claim("reset")?;
    /// ram.write(0x5000, b"guest")?;
    /// assert!(migration.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
    /// assert!(reset.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
    ///
    /// let second = ram.dirty().claim(DirtyClient::MIGRATION);
    /// assert!(matches!(second, Err(DirtyError::Claimed { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Uses the `membarrier` system call, and so do harvests that find something. A sandbox that
    /// begins to forbid it after the first block was made should allow it: writes that were under
    /// way in that very moment are then not covered by the promise above. For one that kills the
    /// process for it there is `forbid_membarrier`, on Linux.
    ///
    /// # Errors
    ///
    /// [`DirtyError::Claimed`], [`DirtyError::TooManyClients`] if no number is free for a name,
    /// [`DirtyError::NoMemory`], and [`DirtyError::CodeClient`] for the code client, which has a
    /// [`CodeWatch`](crate::CodeWatch) instead.
    pub fn claim(
        self: &Arc<Self>,
        claimant: impl Into<Claimant>,
    ) -> Result<DirtyClaim, DirtyError> {
        let claimant = claimant.into();
        let mut claims = self.lock_claims();
        let free = || DirtyClient::dynamic().find(|client| claims[client.index()].is_none());
        let too_many = || DirtyError::TooManyClients { name: claimant.name().to_owned() };
        let client = claimant.client().or_else(free).ok_or_else(too_many)?;
        if client == DirtyClient::CODE {
            return Err(DirtyError::CodeClient);
        }
        if let Some(by) = &claims[client.index()] {
            return Err(DirtyError::Claimed { client, by: by.to_string() });
        }
        self.marks.reserve(self.room).map_err(|error| no_memory(self.room, &error))?;
        let set = self.page_set()?;
        // What was marked before is the other clients' alone.
        self.distribute(&(0..self.room));
        self.sets.lock()[client.index()] = Some(set);
        claims[client.index()] = Some(claimant.shared_name());
        let disable_count = self.disable_count(client);
        self.switch_on(client);
        Ok(DirtyClaim { dirty: self.clone(), client, disable_count })
    }
}

impl DirtyMemory {
    /// An empty set with room for all pages that the block may have.
    ///
    /// # Errors
    ///
    /// [`DirtyError::NoMemory`].
    pub fn page_set(&self) -> Result<PageSet, DirtyError> {
        PageSet::new(self.room).map_err(|error| no_memory(self.room, &error))
    }
}

impl DirtyClaim {
    /// The client whose log this is.
    pub fn client(&self) -> DirtyClient {
        self.client
    }

    /// The bitmaps of the block.
    pub fn dirty(&self) -> &Arc<DirtyMemory> {
        &self.dirty
    }

    /// Gives bits back that were taken and that the caller cannot deal with: marks `pages` for this
    /// client alone. Does nothing if the claim has ended.
    pub fn give_back(&self, pages: &Range<u64>) {
        if let Some(_harvesting) = self.dirty.lock_harvest_of(self.client, self.disable_count) {
            let pages = pages.start..pages.end.min(self.dirty.room);
            if let Some(set) = &mut self.dirty.sets.lock()[self.client.index()] {
                set.insert(pages);
            }
        }
    }

    /// Locked to take the client's bits of `pages`: while it is held, the claim does not end.
    pub(super) fn lock_harvest(
        &self,
        pages: &Range<u64>,
    ) -> Result<MutexGuard<'_, ()>, DirtyError> {
        let Self { dirty, client, disable_count } = self;
        dirty.check(pages, dirty.pages())?;
        let ended = || DirtyError::ClientOff { client: *client, enabled: dirty.enabled() };
        dirty.lock_harvest_of(*client, *disable_count).ok_or_else(ended)
    }

    /// Ends the claim before it is dropped, for an owner that shares it. Waits for a harvest
    /// through it that is under way, but not for the visitor of
    /// [`visit_runs`](Self::visit_runs): it may still be called for runs that were taken before,
    /// and those that it does not see are dropped. Harvests that begin later fail with
    /// [`DirtyError::ClientOff`].
    pub fn end(&self) {
        let mut claims = self.dirty.lock_claims();
        // The count changes under this lock only.
        if self.dirty.disable_count(self.client) == self.disable_count {
            self.dirty.switch_off(self.client);
            claims[self.client.index()] = None;
        }
    }
}

impl Drop for DirtyClaim {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for DirtyClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyClaim").field("client", &self.client).finish_non_exhaustive()
    }
}
