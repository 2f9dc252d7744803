//! The dirty bitmaps of a block: one for each client, marked together and taken one by one.
//!
//! From the bottom up:
//!
//! - `client`, `error`: the consumers of dirty pages, and the errors
//! - `reports`, `watched`: the pages that are watched for code, and the hook that is called for
//!   writes
//! - `marks`: what marks have set, and when a mark may be left out
//! - `client_sets`: the set of each client
//! - `memory`: the bitmaps of one block; a mark sets one bit for all clients
//! - `distribute`: how marks get to the clients
//! - `merge`: merging a log of others, such as KVM's
//! - `switch`: switching clients on and off, and resizing, while marks are under way
//! - `claim`: a client's log, on as long as it is claimed
//! - `others`: marks for all clients but the one that writes
//! - `snapshot`, `harvest`, `runs`: taking a claim's bits
//! - `code_watch`: a translator's watch
//! - `vm_memory_bitmap`: the bitmap traits of vm-memory
//!
//! Built on `bitmap`, and on `sys` for the barrier. It has page numbers only, and no memory.

pub(crate) mod claim;
pub(crate) mod client;
mod client_sets;
pub(crate) mod code_watch;
mod distribute;
pub(crate) mod error;
pub(crate) mod harvest;
pub(crate) mod marks;
pub(crate) mod memory;
mod merge;
#[cfg(test)]
#[cfg(not(any(target_family = "wasm", target_arch = "s390x")))]
mod model_tests;
#[cfg(test)]
mod oracle_tests;
mod others;
// QEMU's user mode takes no filters of system calls.
#[cfg(all(test, target_os = "linux", not(target_arch = "s390x")))]
mod refused_tests;
mod reports;
mod runs;
pub(crate) mod snapshot;
mod switch;
#[cfg(test)]
mod tests;
#[cfg(feature = "vm-memory")]
pub(crate) mod vm_memory_bitmap;
mod watched;
