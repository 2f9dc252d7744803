//! Whether there is a KVM, and a harness that says so.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test that needs KVM: its name and body. It fails by panicking.
pub type KvmTest = (&'static str, fn());

/// Why KVM cannot be used here, if so.
pub fn unavailable() -> Option<String> {
    match kvm_accel::kvm_ioctls::Kvm::new() {
        Ok(kvm) => match kvm.create_vm() {
            Ok(_) => None,
            Err(error) => Some(format!("/dev/kvm makes no machine: {error}")),
        },
        Err(error) => Some(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// Runs `tests` with the command line of the standard harness.
///
/// Where there is no KVM (or no guest program for this processor) they are counted
/// as ignored, with the reason; with `REQUIRE_KVM=1` they fail instead.
pub fn run(tests: &[KvmTest]) -> ExitCode {
    let arguments = Arguments::from_args();
    let reason = if cfg!(target_arch = "x86_64") {
        unavailable()
    } else {
        Some("there are guest programs for x86-64 only".to_owned())
    };
    let required = std::env::var("REQUIRE_KVM").is_ok_and(|value| value == "1");
    if let Some(reason) = reason.as_ref().filter(|_| !required && !arguments.list) {
        println!("skipped: {} tests that need KVM: {reason}", tests.len());
    }
    let trials = tests.iter().map(|&(name, body)| match reason.clone() {
        None => Trial::test(name, move || {
            body();
            Ok(())
        }),
        Some(reason) if required => Trial::test(name, move || Err(reason.into())),
        Some(_) => Trial::test(name, || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
