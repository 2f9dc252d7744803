//! Guests for arm64: programs at exception level 1, without an operating system. A call of the
//! firmware that KVM plays (PSCI's SYSTEM_OFF) ends them.

use kvm_accel::VcpuEvent;
use kvm_accel::kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN;

pub mod asm;
mod boot;
pub mod programs;

pub use boot::{TABLE_PAGES, boot_descriptor, initialize};

/// Where the ports are: there is a window of memory for them.
const PORTS: u64 = 0x70_0000_0000;

/// The place that programs are told of the I/O port with a number.
pub const fn port(number: u16) -> u64 {
    PORTS + number as u64
}

/// What a vCPU reports when a program has come to its end.
pub const ENDED: VcpuEvent = VcpuEvent::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN);
