//! The edits of one transaction; the clients that are registered and the logs that are claimed.

pub(crate) mod claims;
pub(crate) mod client_registry;
pub(crate) mod ioeventfds;
pub(crate) mod regions;
pub(crate) mod subregions;
