//! The dirty bitmaps of a block: one for each client, marked together and taken one by one.
//!
//! From the bottom up:
//!
//! - `client`, `error`: the consumers of dirty pages, and the errors
//! - `takers`: the right to take a client's bits
//! - `reports`, `watched`: the pages that are watched for code, and the hook that is called for
//!   writes
//! - `memory`: the bitmaps of one block; a mark sets the bits of all clients
//! - `merge`: merging a log of others, such as KVM's
//! - `snapshot`, `harvest`, `runs`: taking a client's bits
//! - `enable`, `registration`, `claim`: switching clients on and off, naming them, claiming their
//!   bits
//! - `code_watch`: a translator's watch
//! - `vm_memory_bitmap`: the bitmap traits of vm-memory
//!
//! Built on `bitmap`, and on `sys` for the barrier. It has page numbers only, and no memory.

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
