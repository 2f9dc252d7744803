//! Claims: the exclusive right to take a client's bits.
//!
//! `takers` keeps all others from taking them.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::dirty::client::{DirtyClient, name_of};
use crate::dirty::error::DirtyError;
use crate::dirty::harvest::Harvest;
use crate::dirty::memory::DirtyMemory;
use crate::dirty::snapshot::DirtySnapshot;

/// The exclusive right to take one client's bits of one block, as long as this is kept.
///
/// Made by [`DirtyMemory::claim`]. While it exists, all harvests through [`DirtyMemory`], and
/// switching the client off there, fail with [`DirtyError::Claimed`]. A claim does not switch the
/// client on. It may outlive the registration of its client: then harvests fail with
/// [`DirtyError::ClientOff`].
#[must_use = "others may take the client's bits again when this is dropped"]
pub struct DirtyClaim {
    dirty: Arc<DirtyMemory>,
    client: DirtyClient,
    number: u64,
}

impl DirtyMemory {
    /// Claims the bits of `client`: until the claim is dropped, only the claim can take them.
    ///
    /// ```
    /// use ram_block::{DirtyClient, DirtyError, RamBlock};
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let (dirty, client) = (ram.dirty(), DirtyClient::MIGRATION);
    /// let claim = dirty.claim(client)?;
    /// dirty.enable(client)?;
    /// ram.write(0x5000, b"guest")?;
    /// let refused = dirty.snapshot_and_clear(client, 0..ram.pages()).unwrap_err();
    /// assert_eq!(refused, DirtyError::Claimed { client });
    /// assert!(claim.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DirtyError::Claimed`] if there is a claim already, or a harvest without one runs for more
    /// than a tenth of a second (one that visits runs may), [`DirtyError::Unregistered`], and
    /// [`DirtyError::CodeClient`] for the code client.
    pub fn claim(self: &Arc<Self>, client: DirtyClient) -> Result<DirtyClaim, DirtyError> {
        // Held, so that the client is neither switched off nor dropped meanwhile.
        let names = self.lock_names();
        if client == DirtyClient::CODE {
            return Err(DirtyError::CodeClient);
        }
        if name_of(&names, client).is_none() {
            return Err(DirtyError::Unregistered { client });
        }
        // Of 32 bits, and not zero.
        let number = self.claims.fetch_add(1, Ordering::Relaxed) % u64::from(u32::MAX) + 1;
        if !self.takers[client.index()].claim(number) {
            return Err(DirtyError::Claimed { client });
        }
        Ok(DirtyClaim { dirty: self.clone(), client, number })
    }
}

impl DirtyClaim {
    /// The client.
    pub fn client(&self) -> DirtyClient {
        self.client
    }

    /// The bitmaps of the block.
    pub fn dirty(&self) -> &Arc<DirtyMemory> {
        &self.dirty
    }

    /// As [`DirtyMemory::snapshot_and_clear`], of the client that is claimed.
    ///
    /// # Errors
    ///
    /// As [`snapshot_and_clear_into`](Self::snapshot_and_clear_into).
    pub fn snapshot_and_clear(&self, pages: Range<u64>) -> Result<Harvest, DirtyError> {
        self.snapshot_and_clear_into(pages, DirtySnapshot::default())
    }

    /// As [`DirtyMemory::snapshot_and_clear_into`], of the client that is claimed.
    ///
    /// # Errors
    ///
    /// [`DirtyError::OutOfRange`] and [`DirtyError::ClientOff`], also if the client is no longer
    /// registered.
    pub fn snapshot_and_clear_into(
        &self,
        pages: Range<u64>,
        buffer: DirtySnapshot,
    ) -> Result<Harvest, DirtyError> {
        let disable_count = self.check()?;
        self.dirty.take_snapshot(self.client, disable_count, pages, buffer)
    }

    /// As [`DirtyMemory::move_into`], of the client that is claimed.
    ///
    /// # Errors
    ///
    /// As there, but for [`DirtyError::Claimed`].
    pub fn move_into(&self, pages: Range<u64>, into: &mut [u64]) -> Result<u64, DirtyError> {
        let disable_count = self.check()?;
        self.dirty.move_bits(self.client, disable_count, pages, into)
    }

    /// As [`DirtyMemory::visit_runs`], of the client that is claimed.
    ///
    /// # Errors
    ///
    /// As there, but for [`DirtyError::Claimed`].
    pub fn visit_runs<B>(
        &self,
        pages: Range<u64>,
        gap: u64,
        visit: impl FnMut(Range<u64>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, DirtyError> {
        let disable_count = self.check()?;
        self.dirty.take_runs(self.client, disable_count, pages, gap, visit)
    }

    /// Switches the client off, as [`DirtyMemory::disable`] does. The claim stays.
    pub fn disable(&self) {
        let names = self.dirty.lock_names();
        if self.check().is_ok() {
            self.dirty.switch_off(&names, self.client);
        }
    }

    /// Checks that the claim is still valid: the client may be unregistered, and another client may
    /// have its number. Returns how often the client was switched off before: if the claim ends
    /// after this, that count changes before another client gets the number, and a harvest gives
    /// back what it took of that client.
    fn check(&self) -> Result<u64, DirtyError> {
        let Self { dirty, client, number } = self;
        // Read first: a count that is read later may be that of the client's successor.
        let disable_count = dirty.disable_count(*client);
        if dirty.takers[client.index()].has(*number) {
            return Ok(disable_count);
        }
        Err(DirtyError::ClientOff { client: *client, enabled: dirty.enabled() })
    }
}

impl Drop for DirtyClaim {
    fn drop(&mut self) {
        self.dirty.takers[self.client.index()].release(self.number);
    }
}

impl fmt::Debug for DirtyClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyClaim").field("client", &self.client).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::page::PageSize;

    const VGA: DirtyClient = DirtyClient::VGA;
    const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
    const REFUSED: DirtyError = DirtyError::Claimed { client: VGA };

    fn memory() -> Arc<DirtyMemory> {
        let memory = DirtyMemory::new(128, PageSize::new(4096).unwrap());
        memory.enable(VGA).unwrap();
        memory.enable(MIGRATION).unwrap();
        memory
    }

    fn go_on(_: Range<u64>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn only_the_claim_takes_what_is_claimed() {
        let memory = memory();
        let claim = memory.claim(VGA).unwrap();
        memory.mark(0, 4096);
        let mut words = [0; 2];
        assert_eq!(memory.snapshot_and_clear(VGA, 0..128).unwrap_err(), REFUSED);
        let buffer = DirtySnapshot::default();
        assert_eq!(memory.snapshot_and_clear_into(VGA, 0..128, buffer).unwrap_err(), REFUSED);
        assert_eq!(memory.move_into(VGA, 0..128, &mut words).unwrap_err(), REFUSED);
        assert_eq!(memory.visit_runs(VGA, 0..128, 0, go_on).unwrap_err(), REFUSED);
        assert_eq!(memory.disable(VGA).unwrap_err(), REFUSED);
        assert_eq!(memory.claim(VGA).unwrap_err(), REFUSED);
        assert!(memory.is_claimed(VGA) && memory.is_dirty(VGA, 0));

        // Others' bits are not concerned.
        assert!(!memory.is_claimed(MIGRATION));
        assert_eq!(memory.move_into(MIGRATION, 0..128, &mut words), Ok(1));
        memory.disable(MIGRATION).unwrap();

        drop(claim.snapshot_and_clear(0..128).unwrap()); // given back
        let visited = claim.visit_runs(0..128, 0, ControlFlow::Break).unwrap();
        assert_eq!(visited.break_value(), Some(0..1));
        memory.mark(4096, 1);
        assert_eq!(claim.move_into(0..128, &mut words), Ok(1));
        drop(claim);
        memory.mark(0, 1);
        assert!(memory.snapshot_and_clear(VGA, 0..128).unwrap().commit().is_dirty(0));
        memory.disable(VGA).unwrap();
    }

    #[test]
    fn a_claim_is_refused_while_somebody_harvests() {
        let memory = memory();
        memory.mark(0, 4096);
        let visit = |_| ControlFlow::Break(memory.claim(VGA).unwrap_err());
        let visited = memory.visit_runs(VGA, 0..128, 0, visit).unwrap();
        assert_eq!(visited.break_value(), Some(REFUSED));
        drop(memory.claim(VGA).unwrap());
        // A visitor that panics has left, too.
        memory.mark(0, 4096);
        let panics = std::panic::AssertUnwindSafe(|| {
            memory.visit_runs::<()>(VGA, 0..128, 0, |_| std::panic::resume_unwind(Box::new(1)))
        });
        std::panic::catch_unwind(panics).unwrap_err();
        assert!(memory.claim(VGA).unwrap().snapshot_and_clear(0..128).unwrap().is_dirty(0));
    }

    #[test]
    fn a_claim_ends_with_its_client() {
        let memory = memory();
        let first = memory.register("first").unwrap();
        let client = first.client();
        memory.enable(client).unwrap();
        let stale = memory.claim(client).unwrap();
        drop(first);
        let gone = |error| matches!(error, DirtyError::ClientOff { .. });
        assert!(gone(stale.snapshot_and_clear(0..1).unwrap_err()));
        let next = memory.register("next").unwrap();
        assert_eq!(next.client(), client);
        memory.enable(client).unwrap();
        let claim = memory.claim(client).unwrap();
        memory.mark(0, 1);
        assert!(gone(stale.snapshot_and_clear(0..1).unwrap_err()));
        stale.disable();
        drop(stale);
        assert!(memory.is_claimed(client));
        assert!(claim.snapshot_and_clear(0..1).unwrap().is_dirty(0));
        assert_eq!(memory.claim(DirtyClient::CODE).unwrap_err(), DirtyError::CodeClient);
        let unknown = DirtyClient::dynamic().last().unwrap();
        let refused = memory.claim(unknown).unwrap_err();
        assert_eq!(refused, DirtyError::Unregistered { client: unknown });
    }

    /// A client that harvests without a break, as a display without a claim may.
    #[test]
    fn harvests_that_never_end_do_not_keep_a_claim_from_being_taken() {
        let memory = memory();
        let takers = &memory.takers[VGA.index()];
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let first = memory.unclaimed(VGA).unwrap();
            // One harvest goes on until the next has begun; there is always one.
            scope.spawn(|| {
                let mut last = first;
                while done.load(Ordering::Acquire) == 0 {
                    match memory.unclaimed(VGA) {
                        Ok(next) => last = next,
                        Err(_) => break,
                    }
                }
                drop(last);
            });
            let claim = memory.claim(VGA);
            done.store(1, Ordering::Release);
            assert!(takers.has(claim.unwrap().number));
        });
        assert!(!memory.is_claimed(VGA) && memory.unclaimed(VGA).is_ok());
    }

    /// The client is dropped after a harvest has found the claim valid, and its number is another's
    /// when bits are taken.
    #[test]
    fn a_claim_that_ends_in_the_middle_of_a_harvest_takes_nothing_of_the_next_clients() {
        for is_on in [false, true] {
            let memory = memory();
            let first = memory.register("first").unwrap();
            let client = first.client();
            if is_on {
                memory.enable(client).unwrap();
            }
            let stale = memory.claim(client).unwrap();
            let disable_count = stale.check().unwrap();
            drop(first);
            let next = memory.register("next").unwrap();
            assert_eq!(next.client(), client);
            memory.enable(client).unwrap();
            let claim = memory.claim(client).unwrap();
            memory.mark(0, 1);
            let gone = |error| matches!(error, DirtyError::ClientOff { .. });
            let (pages, buffer) = (0..128, DirtySnapshot::default());
            let taken = memory.take_snapshot(client, disable_count, pages.clone(), buffer);
            assert!(gone(taken.unwrap_err()));
            let mut words = [0; 2];
            let taken = memory.move_bits(client, disable_count, pages.clone(), &mut words);
            assert!(gone(taken.unwrap_err()));
            let taken = memory.take_runs(client, disable_count, pages.clone(), 0, go_on);
            assert!(gone(taken.unwrap_err()));
            assert!(claim.snapshot_and_clear(pages).unwrap().is_dirty(0));
        }
    }

    /// Harvests without a claim, which begin at any time: all bits that are marked once the claim
    /// is granted are the claim's.
    #[test]
    fn nothing_that_is_marked_after_a_claim_goes_to_others() {
        let memory = memory();
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (done, memory) = (&done, &memory);
            for _ in 0..2 {
                scope.spawn(move || {
                    while done.load(Ordering::Acquire) == 0 {
                        match memory.snapshot_and_clear(VGA, 0..128) {
                            Ok(harvest) => drop(harvest.commit()),
                            Err(error) => assert_eq!(error, REFUSED),
                        }
                    }
                });
            }
            for round in 0..2_000 {
                let claim = loop {
                    match memory.claim(VGA) {
                        Ok(claim) => break claim,
                        Err(_) => std::thread::yield_now(),
                    }
                };
                memory.mark(round % 128 * 4096, 1);
                let found = claim.snapshot_and_clear(0..128).unwrap().commit();
                if !found.is_dirty(round % 128) {
                    done.store(1, Ordering::Release);
                    panic!("round {round}: taken by another");
                }
            }
            done.store(1, Ordering::Release);
        });
    }
}
