//! Tests on real KVM guests.

use std::process::ExitCode;

use integration_tests::{harness, needs};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod on_kvm;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    harness::run_all(vec![
        (needs::kvm(), on_kvm::tests()),
        (needs::nested_svm(), on_kvm::tests_of_nested()),
        (needs::firmware(), on_kvm::tests_of_firmware()),
    ])
}

#[cfg(target_arch = "aarch64")]
fn main() -> ExitCode {
    harness::run(&needs::kvm(), on_kvm::tests())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn main() -> ExitCode {
    harness::run(&needs::kvm(), harness::named(&[("guests", || ())]))
}
