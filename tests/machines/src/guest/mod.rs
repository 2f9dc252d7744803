//! Guests for x86-64: 64-bit programs in ring 3, without an operating system.
//!
//! In ring 3 because a nested KVM without hardware support emulates ring 0
//! instruction by instruction, while ring 3 runs natively everywhere. With an I/O
//! privilege level of 3 a program may access ports; `hlt`, which it may not execute,
//! ends it: there is no handler for the fault, so that KVM reports a shutdown.

#[cfg(target_arch = "x86_64")]
mod boot;
#[cfg(target_arch = "x86_64")]
pub mod boot_sector;
#[cfg(target_arch = "x86_64")]
pub mod programs;
#[cfg(target_arch = "x86_64")]
pub mod scene;
#[cfg(target_arch = "x86_64")]
pub mod script;

#[cfg(target_arch = "x86_64")]
pub use boot::{TABLE_PAGES, boot, boot_at, boot_descriptor};

/// Guest-physical address of the programs' code.
pub const CODE: u64 = 0x1_0000;
/// Where programs find their data: from here on RAM is theirs.
pub const DATA: u64 = 0x10_0000;
