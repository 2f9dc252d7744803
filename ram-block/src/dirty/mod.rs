//! The dirty bitmaps of a block: one for each client, marked together and taken one by one.
//!
//! From the bottom up:
//!
//! - `client`, `error`: who wants to know what changed, and what is refused
//! - `takers`: who may take a client's bits
//! - `reports`, `watched`: which pages are watched for code, and who is told of a write
//! - `memory`: the bitmaps of one block, and the mark that fans out to all clients
//! - `merge`: what somebody else logged, such as KVM
//! - `snapshot`, `harvest`, `runs`: taking a client's bits
//! - `enable`, `registration`, `claim`: who is on, under which name, and with whose right
//! - `code_watch`: a translator's watch
//! - `vm_memory_bitmap`: vm-memory's view of all this
//!
//! Stands on `bitmap`, and on `sys` for the barrier. It knows pages, and no memory.

pub(crate) mod claim;
pub(crate) mod client;
pub(crate) mod code_watch;
mod enable;
pub(crate) mod error;
pub(crate) mod harvest;
pub(crate) mod memory;
mod merge;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod oracle_tests;
pub(crate) mod registration;
mod reports;
mod runs;
pub(crate) mod snapshot;
mod takers;
#[cfg(test)]
mod tests;
pub(crate) mod vm_memory_bitmap;
mod watched;
