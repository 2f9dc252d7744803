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
//! A block's memory is sent and received without a copy ([`SendList`], [`ReceiveList`]); memory
//! that is zero or was never touched is found without reading it, or as fast as it can be read
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
//! let vga = ram.dirty().claim(DirtyClient::VGA)?;
//! let migration = ram.dirty().claim(DirtyClient::MIGRATION)?;
//!
//! ram.write(3 * page, b"a store of the monitor marks both clients")?;
//!
//! let harvest = vga.snapshot_and_clear(0..ram.pages())?;
//! assert_eq!(harvest.pages().collect::<Vec<_>>(), [3]);
//! harvest.commit(); // drawn: the bits are not given back
//!
//! assert!(!ram.dirty().is_dirty(DirtyClient::VGA, 3));
//! assert!(migration.snapshot_and_clear(0..ram.pages())?.is_dirty(3));
//! # Ok(())
//! # }
//! ```
//!
//! # Where the unsafe code is
//!
//! `page` asks for the host's page size, `sys::mapping` maps memory, `sys::populate` and
//! `sys::discard` allocate its pages and free them, `block::builder` takes memory of the caller,
//! `block::ram_block` lends it to vm-memory, `block::ram_page` and `block::scalar` access it
//! integer by integer, `content::compare` compares it in place, `bitmap::word` makes arrays of
//! words of it, `bitmap::simd` and `content::zero_scan` choose instructions at run time;
//! `sys::membarrier`, `io::vectored` and `sys::pagemap` issue system calls. Everything else is safe
//! Rust.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("guest memory is indexed with 64-bit offsets: a 64-bit host is needed");

mod bitmap;
mod block;
mod content;
mod dirty;
mod io;
mod page;
mod sys;

pub use bitmap::bits::runs;
pub use bitmap::page_set::PageSet;
pub use bitmap::simd::summarize;
pub use block::builder::RamBlockBuilder;
pub use block::error::{MAX_ID_LEN, RamBlockError};
pub use block::ram_block::{RamBlock, RamSlice};
pub use block::ram_page::RamPage;
pub use block::scalar::Scalar;
pub use content::compare::difference;
pub use content::extents::DataExtents;
pub use dirty::claim::DirtyClaim;
pub use dirty::client::{Claimant, ClientSet, DirtyClient};
pub use dirty::code_watch::{CodeWatch, WatchToken};
pub use dirty::error::DirtyError;
pub use dirty::harvest::Harvest;
pub use dirty::memory::DirtyMemory;
pub use dirty::snapshot::DirtySnapshot;
pub use dirty::vm_memory_bitmap::DirtyBitmap;
pub use io::error::TransferError;
pub use io::receive::ReceiveList;
pub use io::send::SendList;
pub use page::{PageSize, PageSizeError};
pub use sys::mapping::HugePages;
/// The version of vm-memory whose traits the public types implement.
pub use vm_memory;
