//! Guest RAM, and one dirty bitmap for each of its consumers.
//!
//! A virtual machine's memory has several readers that want to know *what
//! changed*: a display redraws the touched lines, a live migration sends the
//! touched pages again, a translator drops the code it made from them. Each of
//! these [clients](DirtyClient) owns a bitmap here, so that one client's
//! harvest never eats another's bits.
//!
//! The invariant: **a mark that has returned is seen by the next harvest of
//! every client that was on**, and a harvest that is not committed gives its
//! bits back. Nothing between a guest's store and its consumer loses a page.
//!
//! ```text
//!   KVM's log  --merge-->  +--------------- RamBlock ---------------+
//!   vm-memory  --mark--->  | host memory      DirtyMemory           |
//!   devices    --mark--->  |                  VGA  CODE  MIGRATION  |
//!                          +-----------------------|----------------+
//!                                     snapshot_and_clear -> Harvest
//! ```
//!
//! A block's memory goes out and comes in without a copy ([`SendList`], [`ReceiveList`]); what
//! is zero or was never touched is found without reading it, or as fast as it can be read
//! ([`RamBlock::data_extents`], [`RamBlock::zero_mask`]).
//!
//! # Example
//!
//! ```
//! use ram_block::{DirtyClient, RamBlock};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ram = RamBlock::anonymous("pc.ram", 16 << 20)?;
//! let page = ram.page_size().bytes();
//! ram.dirty().enable(DirtyClient::VGA)?;
//! ram.dirty().enable(DirtyClient::MIGRATION)?;
//!
//! ram.write(3 * page, b"a store of the monitor marks both clients")?;
//!
//! let harvest = ram.dirty().snapshot_and_clear(DirtyClient::VGA, 0..ram.pages())?;
//! assert_eq!(harvest.pages().collect::<Vec<_>>(), [3]);
//! harvest.commit(); // drawn: the bits are not given back
//!
//! assert!(!ram.dirty().is_dirty(DirtyClient::VGA, 3));
//! assert!(ram.dirty().is_dirty(DirtyClient::MIGRATION, 3));
//! # Ok(())
//! # }
//! ```
//!
//! # Where the unsafe code is
//!
//! `backing` maps memory, `backing::pages` populates and gives back its pages, `builder` takes
//! the caller's, `block` lends it to vm-memory, `compare` looks at it in place, `word` makes
//! arrays of words of it, `wide` and `zero::scan` choose instructions at run time; `barrier`,
//! `io::vectored` and `presence` issue system calls.
//! Everything else is safe Rust.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("guest memory is indexed with 64-bit offsets: a 64-bit host is needed");

mod backing;
mod barrier;
mod bitmap;
mod block;
mod builder;
mod bulk;
mod client;
mod code;
mod compare;
mod dirty;
mod error;
mod extents;
mod io;
mod page;
mod presence;
mod snapshot;
mod visit;
mod vm_memory_bitmap;
mod wide;
mod word;
mod zero;

pub use backing::HugePages;
pub use block::{MAX_ID_LEN, RamBlock, RamSlice};
pub use builder::RamBlockBuilder;
pub use client::{ClientSet, DirtyClient};
pub use code::{CodeWatch, Watching};
pub use compare::difference;
pub use dirty::{ClientRegistration, DirtyClaim, DirtyError, DirtyMemory};
pub use error::RamBlockError;
pub use extents::DataExtents;
pub use io::{ReceiveList, SendList, TransferError};
pub use page::{PageSize, PageSizeError};
pub use snapshot::{DirtySnapshot, Harvest};
/// The version of vm-memory whose traits the public types implement.
pub use vm_memory;
pub use vm_memory_bitmap::DirtyBitmap;
pub use wide::summarize;
