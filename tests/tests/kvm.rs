//! Tests on real KVM guests.

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod on_kvm;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    integration_tests::kvm::run(&on_kvm::tests())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    integration_tests::kvm::run(&[("guests", || ())])
}
