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

/// Whether KVM lets guests run guests of their own by SVM: bit 2 of ECX of CPUID 0x8000_0001 (AMD's
/// manual, volume 3, appendix E).
#[cfg(target_arch = "x86_64")]
pub fn has_nested_svm() -> bool {
    use kvm_accel::kvm_bindings::KVM_MAX_CPUID_ENTRIES;
    use kvm_accel::kvm_ioctls::Kvm;

    let cpuid = Kvm::new().and_then(|kvm| kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES));
    cpuid.is_ok_and(|cpuid| {
        cpuid.as_slice().iter().any(|leaf| leaf.function == 0x8000_0001 && leaf.ecx & 1 << 2 != 0)
    })
}
