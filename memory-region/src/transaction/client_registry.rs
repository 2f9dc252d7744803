//! Clients that are registered with a map at run time.

use std::sync::Arc;

use ram_block::{ClientRegistration, DirtyClaim, DirtyClient, DirtyError, RamBlock};

/// The names of a map's clients, and what they have of its blocks.
#[derive(Default)]
pub(crate) struct Clients {
    names: [Option<Arc<str>>; DirtyClient::COUNT],
    /// Of each block that logs for one of them.
    registrations: Vec<(Arc<RamBlock>, ClientRegistration)>,
}

fn index(client: DirtyClient) -> usize {
    usize::from(client.number())
}

impl Clients {
    /// Gives a number out that none of `blocks` has given out.
    pub(crate) fn register<'a>(
        &mut self,
        name: &str,
        blocks: impl Iterator<Item = &'a Arc<RamBlock>>,
    ) -> Result<DirtyClient, DirtyError> {
        let known =
            |client: DirtyClient| client.built_in_name().or(self.names[index(client)].as_deref());
        if let Some(client) = DirtyClient::all().find(|client| known(*client) == Some(name)) {
            let (name, taken) = (name.to_owned(), name.to_owned());
            return Err(DirtyError::ClientTaken { name, client, taken });
        }
        let blocks: Vec<_> = blocks.collect();
        let is_free = |client: &DirtyClient| {
            known(*client).is_none()
                && blocks.iter().all(|block| block.dirty().client_name(*client).is_none())
        };
        let free = DirtyClient::dynamic().find(is_free);
        let client = free.ok_or_else(|| DirtyError::TooManyClients { name: name.to_owned() })?;
        self.names[index(client)] = Some(name.into());
        Ok(client)
    }

    /// Whether all of `blocks`, and blocks that come later, can log for `client`.
    pub(crate) fn check<'a>(
        &self,
        client: DirtyClient,
        blocks: impl Iterator<Item = &'a Arc<RamBlock>>,
    ) -> Result<(), DirtyError> {
        if client == DirtyClient::CODE {
            return Err(DirtyError::CodeClient);
        }
        if client.built_in_name().is_some() || self.names[index(client)].is_some() {
            return Ok(());
        }
        // Not the map's, but perhaps the blocks' own.
        let mut blocks = blocks.peekable();
        let known = blocks.peek().is_some()
            && blocks.all(|block| block.dirty().client_name(client).is_some());
        if known { Ok(()) } else { Err(DirtyError::Unregistered { client }) }
    }

    pub(crate) fn forget(&mut self, client: DirtyClient) {
        self.names[index(client)] = None;
    }

    /// Switches `client` on in `block`.
    pub(crate) fn switch_on(
        &mut self,
        block: &Arc<RamBlock>,
        client: DirtyClient,
    ) -> Result<(), DirtyError> {
        if let Some(name) = &self.names[index(client)] {
            let registration = block.dirty().register_as(client, name)?;
            self.registrations.push((block.clone(), registration));
        }
        block.dirty().enable(client).inspect_err(|_| self.switch_off(block, client, None))
    }

    /// Switches `client` off in `block`, which the map may have claimed.
    pub(crate) fn switch_off(
        &mut self,
        block: &Arc<RamBlock>,
        client: DirtyClient,
        claim: Option<Arc<DirtyClaim>>,
    ) {
        match claim {
            Some(claim) => claim.disable(),
            None => {
                if let Err(error) = block.dirty().disable(client) {
                    // Of another map, or at the block: it goes on there.
                    log::debug!("{client} stays on in {}: {error}", block.id());
                }
            }
        }
        self.registrations.retain(|(other, registration)| {
            !Arc::ptr_eq(other, block) || registration.client() != client
        });
    }
}
