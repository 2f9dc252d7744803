//! A VMM as many exist: it keeps its virtual machine of KVM, its vCPU, its run loop and its signal.
//! `kvm-accel` gives it slots and a dirty log, `migration-ram` moves it while it runs.
//!
//! `cargo run --release --example own_vmm`

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod vmm;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    machines::demo::end(vmm::run())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("error: there is a guest program for x86-64 only");
    ExitCode::FAILURE
}
