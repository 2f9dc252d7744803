//! Whether there is a KVM.

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
