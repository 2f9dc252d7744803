//! The memory map of a machine: which region answers at which address, and which listeners are
//! notified of changes.
//!
//! A tree of [regions](RegionId) (containers, RAM, ROM, devices, aliases) is
//! [edited](Transaction) in transactions. Each commit renders it into a [`FlatView`]: the
//! sorted list of [`Section`]s that a bus sees. Accesses go through an [`AddressSpace`],
//! which holds the current view and never waits for a writer. Accelerators, and other writers of
//! guest memory with a dirty log of their own ([`ExternalDirtyLog`]), are its [`MemoryListener`]s.
//! Ports are a space of 65,536 bytes with the same regions. Crates that know vm-memory
//! use a space as their `GuestAddressSpace`.
//!
//! The invariant: **the view and every listener agree**. A commit that a listener
//! refuses leaves the map, the view and the other listeners as they were.
//!
//! ```text
//!   transaction(|map| ...) -> region tree --render--> FlatView --publish--> AddressSpace
//!                                                        |                  read, write
//!                                                       diff
//!                                                        v
//!                                                  MemoryListener (KVM's slots, a vhost log)
//! ```
//!
//! Processors that are interpreted access memory through a [`Tlb`], at about the cost of an array.
//! [`MemoryMap::mtree`] and [`MemoryMap::flat_views`] print what is there.
//!
//! # Hosts and features
//!
//! All of this is the same on every host, but that Linux alone has eventfds, and so a value of
//! [`IoEventFd`]. The default feature `vm-memory`, for which see `ram_block`, makes an address
//! space vm-memory's `GuestAddressSpace`, and on Linux brings the log that vhost-user shares.
//!
//! # Example
//!
//! ```
//! use memory_region::MemoryMap;
//! use ram_block::{DirtyClient, RamBlock};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = MemoryMap::new();
//! let (system, vram) = memory.transaction(|map| {
//!     let system = map.container("system", 1 << 64)?;
//!     let ram = map.ram("ram", RamBlock::anonymous("pc.ram", 64 << 20)?)?;
//!     let vram = map.ram("vram", RamBlock::anonymous("vga.vram", 16 << 20)?)?;
//!     let window = map.alias("vga-window", vram, 0, 0x20000)?;
//!     map.add_subregion(system, 0, ram)?;
//!     map.add_subregion_overlap(system, 0xa0000, window, 1)?;
//!     Ok((system, vram))
//! })?;
//! let space = memory.address_space("memory", system)?;
//!
//! let mut log = memory.claim_log(vram, DirtyClient::VGA)?;
//! space.write(0xa0010, &[7])?;
//! let harvest = log.snapshot_and_clear(0..0x20000)?;
//! assert_eq!(harvest.pages().collect::<Vec<_>>(), [0]);
//! harvest.commit();
//! # Ok(())
//! # }
//! ```

// docs.rs, which builds with a nightly compiler, says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod cpu;
mod device;
mod error;
mod fault;
mod listener;
mod map;
mod region_id;
mod transaction;
mod tree;
mod view;

pub use cpu::statistics::TlbStatistics;
pub use cpu::tlb::Tlb;
pub use device::dispatch::DeviceRegion;
pub use device::ioeventfd::{CoalescedRange, EventFd, IoEventFd};
pub use device::iommu::{Iommu, Translation};
pub use device::mmio::{AccessSizes, Endianness, MmioAccess, MmioDevice};
pub use error::{AccessError, ListenerError, MapError};
pub use fault::bus_fault::BusFault;
pub use fault::trap::Trap;
pub use fault::watchpoint::{Watchpoint, WatchpointKind};
pub use listener::change::{GlobalLogChange, ListDiff, LogChange, MemoryListener, ViewChange};
pub use listener::external_log::{ExternalDirtyLog, ExternalDirtyLogListener};
#[cfg(all(feature = "vm-memory", target_os = "linux"))]
pub use listener::vhost_log::VhostLog;
pub use map::global_log_claim::GlobalLogClaim;
pub use map::log_claim::LogClaim;
pub use map::memory_map::MemoryMap;
pub use map::mtree::{FlatViews, Mtree};
/// The crates whose types appear in this one's.
pub use ram_block;
pub use region_id::RegionId;
pub use transaction::regions::Transaction;
pub use view::address_space::AddressSpace;
pub use view::flat_view::FlatView;
#[cfg(feature = "vm-memory")]
pub use view::guest_ram::{GuestRam, GuestRamRegion};
pub use view::section::{Section, SectionTarget};
/// The crates whose types appear in this one's.
#[cfg(target_os = "linux")]
pub use vmm_sys_util;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
