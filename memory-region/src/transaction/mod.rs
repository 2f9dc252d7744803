//! The edits of one transaction.

pub(crate) mod ioeventfds;
pub(crate) mod logs;
pub(crate) mod regions;
pub(crate) mod subregions;
