//! The edits of one transaction, and who has which client and log.

pub(crate) mod claims;
pub(crate) mod client_registry;
pub(crate) mod ioeventfds;
pub(crate) mod regions;
pub(crate) mod subregions;
