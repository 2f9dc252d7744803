//! Clients: the consumers of dirty pages.

use std::fmt;
use std::sync::Arc;

/// A consumer of dirty pages, with a bitmap of its own.
///
/// The three built-in clients keep QEMU's numbers; the others are free for whoever claims one
/// ([`DirtyMemory::claim`](crate::DirtyMemory::claim)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirtyClient(u8);

impl DirtyClient {
    /// A display, which redraws what changed.
    pub const VGA: Self = Self(0);
    /// A translator, which drops code made from pages that changed. Its bitmap has the
    /// inverse meaning and is kept by a [`CodeWatch`](crate::CodeWatch): a page is dirty
    /// unless it is watched.
    pub const CODE: Self = Self(1);
    /// A live migration, which sends again what changed.
    pub const MIGRATION: Self = Self(2);

    /// How many clients there can be.
    pub const COUNT: usize = 8;

    /// Every client that there can be, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..8).map(Self)
    }

    /// The clients that are not built in, in the order of their numbers.
    pub fn dynamic() -> impl Iterator<Item = Self> {
        (3..8).map(Self)
    }

    /// The name of a built-in client.
    pub const fn built_in_name(self) -> Option<&'static str> {
        match self.0 {
            0 => Some("vga"),
            1 => Some("code"),
            2 => Some("migration"),
            _ => None,
        }
    }

    /// The client's number: its bit in a [`ClientSet`].
    pub const fn number(self) -> u8 {
        self.0
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for DirtyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.built_in_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "client {}", self.0),
        }
    }
}

/// Who claims a client's log: a client by its number, or a name, for which any number will do that
/// is free.
///
/// ```
/// use ram_block::{Claimant, DirtyClient};
///
/// let migration: Claimant = DirtyClient::MIGRATION.into();
/// let checkpoint: Claimant = "checkpoint".into();
/// assert_eq!((migration.name(), migration.client()), ("migration", Some(DirtyClient::MIGRATION)));
/// assert_eq!((checkpoint.name(), checkpoint.client()), ("checkpoint", None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    client: Option<DirtyClient>,
    name: Arc<str>,
}

impl Claimant {
    /// `client`, under a name of the caller's, which errors show.
    pub fn named(client: DirtyClient, name: &str) -> Self {
        Self { client: Some(client), name: name.into() }
    }

    /// The client, or `None` if any number will do.
    pub fn client(&self) -> Option<DirtyClient> {
        self.client
    }

    /// The name that errors show.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }
}

impl From<DirtyClient> for Claimant {
    fn from(client: DirtyClient) -> Self {
        Self::named(client, &client.to_string())
    }
}

impl From<&str> for Claimant {
    fn from(name: &str) -> Self {
        Self { client: None, name: name.into() }
    }
}

/// The names under which clients are claimed.
pub(super) type Claims = [Option<Arc<str>>; DirtyClient::COUNT];

/// A set of clients: those that log a piece of memory, for example.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ClientSet(u8);

impl ClientSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The mask, bit n for the client of number n.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `client` is in the set.
    pub const fn contains(self, client: DirtyClient) -> bool {
        self.0 & (1 << client.0) != 0
    }

    /// The set with `client` in it.
    #[must_use]
    pub const fn with(self, client: DirtyClient) -> Self {
        Self(self.0 | 1 << client.0)
    }

    /// The set without `client`.
    #[must_use]
    pub const fn without(self, client: DirtyClient) -> Self {
        Self(self.0 & !(1 << client.0))
    }

    /// The clients in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The clients in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The clients in the set, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = DirtyClient> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let number = rest.trailing_zeros();
            // Clears the lowest bit; zero stays zero.
            rest &= rest.wrapping_sub(1);
            u8::try_from(number).ok().filter(|number| *number < 8).map(DirtyClient)
        })
    }
}

impl FromIterator<DirtyClient> for ClientSet {
    fn from_iter<I: IntoIterator<Item = DirtyClient>>(clients: I) -> Self {
        clients.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for ClientSet {
    /// The names with `|` between them, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (n, client) in self.iter().enumerate() {
            write!(f, "{}{client}", if n == 0 { "" } else { "|" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClientSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_clients_keep_their_numbers() {
        let built_in = [DirtyClient::VGA, DirtyClient::CODE, DirtyClient::MIGRATION];
        assert_eq!(built_in.map(DirtyClient::number), [0, 1, 2]);
        assert_eq!(built_in.map(|client| client.to_string()), ["vga", "code", "migration"]);
        assert!(DirtyClient::all().eq(built_in.into_iter().chain(DirtyClient::dynamic())));
        assert_eq!(DirtyClient::all().count(), DirtyClient::COUNT);
    }

    #[test]
    fn sets_name_their_members() {
        let set: ClientSet = [DirtyClient::MIGRATION, DirtyClient::VGA].into_iter().collect();
        assert_eq!(set.to_string(), "vga|migration");
        assert_eq!(set.bits(), 0b101);
        assert!(set.iter().eq([DirtyClient::VGA, DirtyClient::MIGRATION]));
        assert!(DirtyClient::all().collect::<ClientSet>().iter().eq(DirtyClient::all()));
        assert_eq!(
            set.without(DirtyClient::VGA).without(DirtyClient::MIGRATION).to_string(),
            "none"
        );
    }
}
