//! Whether there is a KVM.

use crate::harness::Need;

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

/// What tests with guests need: KVM, and a processor that the programs are for.
pub fn need() -> Need {
    let missing = if cfg!(target_arch = "x86_64") {
        unavailable()
    } else {
        Some("there are guest programs for x86-64 only".to_owned())
    };
    Need { name: "KVM", required_by: "REQUIRE_KVM", missing }
}
