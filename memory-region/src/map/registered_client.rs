//! Clients that are registered with a map at run time.

use std::fmt;
use std::sync::Arc;

use ram_block::DirtyClient;

use crate::error::MapError;
use crate::map::memory_map::{DeferredDrop, MemoryMap};

/// A client of a map's dirty logs that was registered at run time, until this is dropped:
/// then its logs are switched off, its bitmaps are freed, and its number is free for others.
/// Dropped within an update's closure or by a listener, it goes after that update.
#[must_use = "the client is gone when this is dropped"]
pub struct RegisteredClient {
    map: Arc<MemoryMap>,
    client: DirtyClient,
}

impl RegisteredClient {
    /// The client, for the map's methods.
    pub fn client(&self) -> DirtyClient {
        self.client
    }
}

impl fmt::Debug for RegisteredClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegisteredClient").field(&self.client).finish()
    }
}

impl Drop for RegisteredClient {
    fn drop(&mut self) {
        self.map.end(DeferredDrop::Client(self.client));
    }
}

impl MemoryMap {
    /// Gives a number to a client of its own, the same in all blocks: a checkpoint, a
    /// fuzzer's reset. It logs nothing yet.
    ///
    /// ```
    /// use memory_region::MemoryMap;
    /// use ram_block::RamBlock;
    ///
    /// let memory = MemoryMap::new();
    /// let ram = RamBlock::anonymous("pc.ram", 1 << 20)?;
    /// let ram = memory.transaction(|map| map.ram("ram", ram))?;
    /// let reset = memory.register_client("reset")?;
    /// memory.set_global_log(reset.client(), true)?;
    /// memory.ram_block(ram)?.write(0x3000, b"guest")?;
    /// let dirty = memory.snapshot_and_clear(ram, reset.client(), 0..1 << 20)?;
    /// assert!(dirty.commit().is_dirty(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`MapError::Dirty`] if all numbers are given out, here or by a block, or the name is;
    /// [`MapError::Reentrant`].
    pub fn register_client(self: &Arc<Self>, name: &str) -> Result<RegisteredClient, MapError> {
        let client = self.take_name(name)?;
        Ok(RegisteredClient { map: self.clone(), client })
    }
}

#[cfg(test)]
mod tests {
    use ram_block::{DirtyError, RamBlock};

    use super::*;

    const LEN: u64 = 1 << 20;

    fn block(id: &str) -> Arc<RamBlock> {
        RamBlock::anonymous(id, LEN).unwrap()
    }

    #[test]
    fn a_client_has_one_number_in_all_blocks_and_leaves_nothing_behind() {
        let memory = MemoryMap::new();
        let (one, other) = (block("one"), block("other"));
        // The first number is taken in one of the blocks.
        let theirs = other.dirty().register("theirs").unwrap();
        memory.transaction(|map| map.ram("one", one.clone())).unwrap();
        memory.transaction(|map| map.ram("other", other.clone())).unwrap();
        let mine = memory.register_client("mine").unwrap();
        assert_ne!(mine.client(), theirs.client());
        memory.set_global_log(mine.client(), true).unwrap();
        let late = block("late");
        let region = memory.transaction(|map| map.ram("late", late.clone())).unwrap();
        for block in [&one, &other, &late] {
            block.write(0, &[1]).unwrap();
            assert_eq!(block.dirty().client_name(mine.client()).as_deref(), Some("mine"));
            assert!(block.dirty().is_dirty(mine.client(), 0));
        }
        memory.set_log(region, mine.client(), true).unwrap();
        let client = mine.client();
        drop(mine);
        for block in [&one, &other, &late] {
            assert_eq!(block.dirty().client_name(client), None);
            assert!(block.dirty().enabled().is_empty());
        }
        assert_eq!(memory.register_client("next").unwrap().client(), client);
    }

    #[test]
    fn names_and_numbers_are_given_once() {
        let memory = MemoryMap::new();
        let clients: Vec<_> =
            (0..5).map(|n| memory.register_client(&n.to_string()).unwrap()).collect();
        let refused = |name| match memory.register_client(name) {
            Err(MapError::Dirty(error)) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused("more"), DirtyError::TooManyClients { .. }));
        assert!(matches!(refused("3"), DirtyError::ClientTaken { .. }));
        assert!(matches!(refused("migration"), DirtyError::ClientTaken { .. }));
        drop(clients);
        assert!(memory.register_client("more").is_ok());
    }

    /// A number that another map gave to a block in the meantime refuses the log, and
    /// nothing of it is left.
    #[test]
    fn a_number_that_a_block_has_given_away_refuses_the_log() {
        let memory = MemoryMap::new();
        let mine = memory.register_client("mine").unwrap();
        let (free, taken) = (block("free"), block("taken"));
        let _theirs = taken.dirty().register_as(mine.client(), "theirs").unwrap();
        memory.transaction(|map| map.ram("a", free.clone())).unwrap();
        memory.transaction(|map| map.ram("b", taken.clone())).unwrap();
        let refused = memory.set_global_log(mine.client(), true);
        assert!(matches!(refused, Err(MapError::Dirty(DirtyError::ClientTaken { .. }))));
        assert_eq!(free.dirty().client_name(mine.client()), None);
        assert_eq!(taken.dirty().client_name(mine.client()).as_deref(), Some("theirs"));
    }

    /// At once, by name, and not when the first RAM comes, whose maker did nothing wrong.
    #[test]
    fn who_cannot_log_is_refused_at_once() {
        let memory = MemoryMap::new();
        let number = DirtyClient::dynamic().next().unwrap();
        let unregistered = |error: &MapError| {
            matches!(error,
                MapError::Dirty(DirtyError::Unregistered { client }) if *client == number)
        };
        let inverse = |error: &MapError| matches!(error, MapError::Dirty(DirtyError::CodeClient));
        // Without any RAM, and with some.
        for id in ["one", "other"] {
            assert!(unregistered(&memory.set_global_log(number, true).unwrap_err()));
            assert!(inverse(&memory.set_global_log(DirtyClient::CODE, true).unwrap_err()));
            let ram = memory.transaction(|map| map.ram(id, block(id))).unwrap();
            assert!(unregistered(&memory.set_log(ram, number, true).unwrap_err()));
            assert!(inverse(&memory.set_log(ram, DirtyClient::CODE, true).unwrap_err()));
            memory.set_log(ram, number, false).unwrap();
        }
        // The edit that is wrong says so, and the transaction may go on without it.
        memory
            .transaction(|map| {
                assert!(map.set_global_log(number, true).is_err());
                map.ram("third", block("third"))
            })
            .unwrap();
        // A number that the block has given out itself can log there, and only there.
        let own = block("own");
        let registration = own.dirty().register_as(number, "own").unwrap();
        let ram = memory.transaction(|map| map.ram("own", own.clone())).unwrap();
        memory.set_log(ram, number, true).unwrap();
        assert!(own.dirty().enabled().contains(registration.client()));
        assert!(unregistered(&memory.set_global_log(number, true).unwrap_err()));
    }

    /// A claim that outlives its client takes nothing from the next of its number.
    #[test]
    fn a_claim_ends_with_its_client() {
        let memory = MemoryMap::new();
        let ram = block("ram");
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        let first = memory.register_client("first").unwrap();
        let stale = memory.claim_global_log(first.client()).unwrap();
        let number = first.client();
        drop(first);
        let next = memory.register_client("next").unwrap();
        assert_eq!(next.client(), number);
        let _claim = memory.claim_global_log(next.client()).unwrap();
        ram.write(0, &[1]).unwrap();
        drop(stale);
        assert!(ram.dirty().is_dirty(next.client(), 0));
    }

    #[test]
    fn ram_that_joins_a_global_log_is_all_new() {
        let memory = MemoryMap::new();
        memory.set_global_log(DirtyClient::MIGRATION, true).unwrap();
        let ram = block("ram");
        ram.write(0, &[1]).unwrap();
        memory.transaction(|map| map.ram("ram", ram.clone())).unwrap();
        assert!((0..ram.pages()).all(|page| ram.dirty().is_dirty(DirtyClient::MIGRATION, page)));
    }
}
