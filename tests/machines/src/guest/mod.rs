//! Guest programs, without an operating system, for the processor that the host has.
//!
//! Programs have the same names and arguments on each: the first argument is in `rdi` on x86-64 and
//! in `x0` on arm64, and so on.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use kvm_accel::Vcpu;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use ram_block::RamBlock;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

/// Guest-physical address of the programs' code.
pub const CODE: u64 = 0x1_0000;
/// Where programs find their data: from here on RAM is theirs.
pub const DATA: u64 = 0x10_0000;

/// As [`boot_descriptor`], for a vCPU of this project's, with the code at [`CODE`].
///
/// # Panics
///
/// As there.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn boot(vcpu: &Vcpu, ram: &RamBlock, code: &[u8], arguments: &[u64]) {
    boot_at(vcpu, ram, CODE, code, arguments);
}

/// As [`boot`], with the code at `address`.
///
/// # Panics
///
/// As there.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn boot_at(vcpu: &Vcpu, ram: &RamBlock, address: u64, code: &[u8], arguments: &[u64]) {
    boot_descriptor(vcpu.fd(), ram, address, code, arguments);
}
