//! Clients that are registered at run time, under names.

use std::fmt;
use std::sync::Arc;

use crate::dirty::client::{DirtyClient, Names, name_of};
use crate::dirty::error::DirtyError;
use crate::dirty::memory::DirtyMemory;

/// A client that was registered at run time. Dropping this switches it off, frees its bitmap, and
/// makes its number available to others.
///
/// Copies of its [`DirtyClient`] that are kept longer are invalid then, or name another client.
#[must_use = "the client is gone when this is dropped"]
pub struct ClientRegistration {
    dirty: Arc<DirtyMemory>,
    client: DirtyClient,
}

impl ClientRegistration {
    /// The client.
    pub fn client(&self) -> DirtyClient {
        self.client
    }
}

impl fmt::Debug for ClientRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientRegistration").field(&self.client).finish()
    }
}

impl Drop for ClientRegistration {
    fn drop(&mut self) {
        let mut names = self.dirty.lock_names();
        self.dirty.switch_off(&names, self.client);
        self.dirty.end_claim(self.client);
        names[self.client.index()] = None;
    }
}

impl DirtyMemory {
    /// Registers a client of the caller's own (a checkpoint, a fuzzer's reset) under a free number.
    /// It is off.
    ///
    /// ```
    /// use ram_block::RamBlock;
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let reset = ram.dirty().register("reset")?;
    /// ram.dirty().enable(reset.client())?;
    /// ram.write(0x5000, b"guest")?;
    /// assert!(ram.dirty().is_dirty(reset.client(), 5));
    /// drop(reset); // off, and its bitmap is gone
    /// assert!(ram.dirty().enabled().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DirtyError::TooManyClients`] if all numbers are in use, and [`DirtyError::ClientTaken`] if
    /// another client has this name.
    pub fn register(self: &Arc<Self>, name: &str) -> Result<ClientRegistration, DirtyError> {
        let mut names = self.lock_names();
        let free = DirtyClient::dynamic().find(|client| names[client.index()].is_none());
        let too_many = || DirtyError::TooManyClients { name: name.to_owned() };
        self.give(&mut names, free.ok_or_else(too_many)?, name)
    }

    /// As [`register`](Self::register), with a number that the caller chooses: to use the same in
    /// many blocks.
    ///
    /// # Errors
    ///
    /// [`DirtyError::ClientTaken`] if the number or the name is another client's.
    pub fn register_as(
        self: &Arc<Self>,
        client: DirtyClient,
        name: &str,
    ) -> Result<ClientRegistration, DirtyError> {
        self.give(&mut self.lock_names(), client, name)
    }

    fn give(
        self: &Arc<Self>,
        names: &mut Names,
        client: DirtyClient,
        name: &str,
    ) -> Result<ClientRegistration, DirtyError> {
        let in_the_way = |other: &DirtyClient| {
            let taken = name_of(names, *other)?;
            (*other == client || taken == name).then(|| (*other, taken.to_owned()))
        };
        let taken = DirtyClient::all().find_map(|other| in_the_way(&other));
        if let Some((client, taken)) = taken {
            return Err(DirtyError::ClientTaken { name: name.to_owned(), client, taken });
        }
        names[client.index()] = Some(name.into());
        Ok(ClientRegistration { dirty: self.clone(), client })
    }

    /// The name of `client`, if it is built in or registered.
    pub fn client_name(&self, client: DirtyClient) -> Option<Arc<str>> {
        name_of(&self.lock_names(), client).map(Arc::from)
    }
}
