//! KVM as the accelerator of a memory map.
//!
//! [`KvmVm`] follows a [`memory_region::AddressSpace`] as a listener: it keeps KVM's memory slots
//! equal to the RAM of the flat view, and merges KVM's dirty log into the bitmaps of every client
//! that logs. [`Vcpu`] runs guest code and turns its exits into accesses of the memory and port
//! address spaces. Some writes need no exit: KVM signals an ioeventfd, or stores the write in its
//! ring of coalesced writes; for I/O ports this takes [`KvmVm::pio_listener`].
//!
//! The invariant: **a page that a guest wrote is in KVM's log or in its block's bitmaps**. Slots
//! are changed only while no vCPU executes guest code, and what KVM logged for a slot is merged
//! before the slot is deleted or its log is switched off.
//!
//! ```text
//!   flat view --commit--> slots --KVM_SET_USER_MEMORY_REGION--> KVM
//!   bitmaps  <--merge--- dirty log <--KVM_GET_DIRTY_LOG-------- KVM
//!   address spaces <--read, write-- Vcpu <--exits, ring-------- KVM
//! ```
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use kvm_accel::{Buses, KvmVm};
//! use memory_region::MemoryMap;
//! use ram_block::{DirtyClient, RamBlock};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = MemoryMap::new();
//! let (system, ports, ram) = memory.transaction(|map| {
//!     let system = map.container("system", 1 << 64)?;
//!     let ram = map.ram("ram", RamBlock::anonymous("pc.ram", 64 << 20)?)?;
//!     map.add_subregion(system, 0, ram)?;
//!     Ok((system, map.container("ports", 1 << 16)?, ram))
//! })?;
//! let system = memory.address_space("memory", system)?;
//! let ports = memory.address_space("io", ports)?;
//!
//! let vm = KvmVm::new(kvm_ioctls::Kvm::new()?.create_vm()?)?;
//! memory.add_listener(&system, vm.clone())?;
//! memory.add_listener(&ports, vm.pio_listener())?;
//! let vcpu = vm.create_vcpu(0, Buses { memory: system, ports })?;
//! // ... set registers through vcpu.fd() ...
//! let mut log = memory.claim_log(ram, DirtyClient::VGA)?;
//! let guest = vcpu.spawn("vcpu0")?;
//!
//! let harvest = log.snapshot_and_clear(0..64 << 20)?;
//! println!("{} pages written", harvest.count());
//! harvest.commit();
//!
//! let still = vm.pause(Duration::from_secs(1))?; // no vCPU runs until this is dropped
//! drop(still);
//! guest.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! # In a VMM that exists
//!
//! [`KvmVm::over`] takes a virtual machine that its owner keeps, and [`KvmVm::adopt_vcpu`] a vCPU
//! that he has made and runs in a loop of his own: [`GuardedVcpu`].
//!
//! # The signal that it uses
//!
//! Running vCPUs are interrupted by a signal ([`KickSignal`]): by the first real-time signal
//! (`SIGRTMIN`), for which a handler that does nothing is installed, unless told otherwise. The
//! process must not install another, nor block the signal on threads that run vCPUs.
//!
//! # Features
//!
//! - `serde`: `Serialize` and `Deserialize` of the states of vCPUs and chips, to be migrated or put
//!   into a file. Off by default: a machine that only goes back to its own states needs none.
//!
//! # Where the unsafe code is
//!
//! `sys::ioctl` passes memory to KVM and reads its answers, `sys::mapping` maps what KVM shares
//! through a vCPU's descriptor, `exclusion::kick` writes a byte of that and sends signals, and
//! `bus::coalesced_ring` maps the ring of coalesced writes. Everything else is safe Rust.

// docs.rs, which builds with a nightly compiler, says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bus;
#[cfg(target_arch = "x86_64")]
mod chips;
mod config;
mod dirty_limit;
mod dirty_ring;
mod error;
mod exclusion;
mod locks;
mod machine;
mod slots;
mod stats;
mod sys;
mod tracking;
mod vcpu;
#[cfg(target_arch = "aarch64")]
mod vgic;
mod vm;

pub use bus::buses::Buses;
#[cfg(target_arch = "x86_64")]
pub use chips::{Chips, ChipsState};
pub use config::{DirtyTracking, KickSignal, KvmConfig};
pub use error::KvmError;
pub use exclusion::gate::PauseGuard;
pub use slots::table::SlotInfo;
pub use stats::{CallStats, DirtyLogStats};
pub use sys::vm_ioctls::VmIoctls;
pub use tracking::DirtyTrackingMode;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use vcpu::VcpuState;
pub use vcpu::guarded::{GuardedVcpu, RunLoop, VcpuKicker, VcpuRun};
pub use vcpu::run::{Vcpu, VcpuEvent};
pub use vcpu::set::{StoppedVcpus, VcpuSet};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use vcpu::state::RollBack;
pub use vcpu::thread::{VcpuThread, VcpuThreadError};
#[cfg(target_arch = "x86_64")]
pub use vcpu::x86_64::run_page::RunPage;
#[cfg(target_arch = "aarch64")]
pub use vgic::{Vgic, VgicState};
pub use vm::KvmVm;
/// The versions of the KVM crates whose types appear here.
pub use {kvm_bindings, kvm_ioctls};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
