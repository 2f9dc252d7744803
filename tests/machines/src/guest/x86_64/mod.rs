//! Guests for x86-64: 64-bit programs in ring 3, without an operating system.
//!
//! In ring 3 because a nested KVM without hardware support emulates ring 0
//! instruction by instruction, while ring 3 runs natively everywhere. With an I/O
//! privilege level of 3 a program may access ports; `hlt`, which it may not execute,
//! ends it: there is no handler for the fault, so that KVM reports a shutdown.

use kvm_accel::VcpuEvent;

mod boot;
pub mod boot_sector;
pub mod programs;
pub mod scene;
pub mod script;

pub use boot::{TABLE_PAGES, boot_descriptor};

/// The place that programs are told of the I/O port with a number.
pub const fn port(number: u16) -> u64 {
    number as u64
}

/// What a vCPU reports when a program has come to its end.
pub const ENDED: VcpuEvent = VcpuEvent::Shutdown;
