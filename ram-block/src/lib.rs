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
//! # Hosts
//!
//! On Linux memory is mapped, and the kernel is asked for what only it knows. Other hosts (Windows,
//! macOS, the BSDs, WebAssembly with WASI or in a browser; 64 or 32 bits, of either byte order) use
//! zeroed memory of the program's allocator: [discarded](RamBlock::discard) bytes are zeroed and
//! their memory is kept, [all of a block](RamBlock::data_extents) counts as data, a page has 4,096
//! bytes, and what takes a file is [`RamBlockError::Unsupported`]. Transfers by descriptor, as
//! `SendList::write_to_fd`, are Linux's only; those by `Read` and `Write` are everywhere.
//!
//! # Features
//!
//! - `vm-memory` (default): slices and bitmaps of the crate vm-memory, which needs a 64-bit host
//!   with an operating system. Nothing else here needs it.
//!
//! # Where the unsafe code is
//!
//! `page` asks for the host's page size. `sys::linux::mapping` maps memory, `sys::linux::populate`
//! and `sys::linux::discard` allocate its pages and free them, `sys::linux::pagemap` and
//! `sys::linux::membarrier` issue system calls, as `io::vectored` does; `sys::portable::mapping`
//! allocates memory on other hosts; `sys::windows::membarrier` calls Windows. `sys::volatile`
//! copies bytes that others access, `block::builder` takes memory of the caller, `block::ram_slice`
//! lends it to vm-memory, `block::ram_block`, `block::ram_page` and `block::scalar` access it
//! integer by integer, `content::compare` compares it in place, `hazard::cell` shares values that
//! others replace, `bitmap::word` makes arrays of words of a mapping, `bitmap::simd` and
//! `content::zero_scan` choose instructions at run time. Everything else is safe Rust.

// docs.rs, which builds with a nightly compiler, says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bitmap;
mod block;
mod content;
mod dirty;
mod hazard;
mod io;
mod page;
mod sys;

pub use bitmap::bits::runs;
pub use bitmap::page_set::PageSet;
pub use bitmap::simd::summarize;
pub use block::builder::RamBlockBuilder;
pub use block::error::{MAX_ID_LEN, RamBlockError};
pub use block::ram_block::RamBlock;
pub use block::ram_page::RamPage;
#[cfg(feature = "vm-memory")]
pub use block::ram_slice::RamSlice;
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
#[cfg(feature = "vm-memory")]
pub use dirty::vm_memory_bitmap::DirtyBitmap;
pub use hazard::cell::{HazardCell, HazardGuard, Reclaimed};
pub use io::error::TransferError;
pub use io::receive::ReceiveList;
pub use io::send::SendList;
pub use page::{PageSize, PageSizeError};
pub use sys::huge_pages::HugePages;
#[cfg(target_os = "linux")]
pub use sys::linux::membarrier::forbid_membarrier;
/// The version of vm-memory whose traits the public types implement.
#[cfg(feature = "vm-memory")]
pub use vm_memory;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
