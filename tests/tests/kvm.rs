//! Tests on real KVM guests.

use std::process::ExitCode;

use integration_tests::{harness, kvm};

#[cfg(target_arch = "x86_64")]
mod on_kvm;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    harness::run(&kvm::need(), on_kvm::tests())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    harness::run(&kvm::need(), harness::named(&[("guests", || ())]))
}
