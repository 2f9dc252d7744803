//! Tests on real KVM guests.

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
use integration_tests::firmware;
use integration_tests::{harness, kvm};

#[cfg(target_arch = "x86_64")]
mod on_kvm;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    harness::run_all(vec![
        (kvm::need(), on_kvm::tests()),
        (firmware::need(), on_kvm::tests_of_firmware()),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    harness::run(&kvm::need(), harness::named(&[("guests", || ())]))
}
