//! What tests need of the machine.

use crate::harness::Need;

/// What tests with guests need: KVM, and a processor that the programs are for.
pub fn kvm() -> Need {
    let missing = if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        machines::kvm::unavailable()
    } else {
        Some("there are guest programs for x86-64 and arm64 only".to_owned())
    };
    Need { name: "KVM", required_by: "REQUIRE_KVM", missing }
}

/// What tests need that run SeaBIOS, Bochs' VGA BIOS and memtest86+ on KVM.
#[cfg(target_arch = "x86_64")]
pub fn firmware() -> Need {
    let kvm = kvm();
    if kvm.missing.is_some() {
        return kvm;
    }
    let missing = mini_pc::firmware::missing().map(|path| format!("there is no {path}"));
    Need {
        name: "SeaBIOS, Bochs' VGA BIOS and memtest86+",
        required_by: "REQUIRE_FIRMWARE",
        missing,
    }
}

/// What tests need whose guests run guests of their own by SVM: a KVM that has it for guests, on
/// AMD's processors and in emulators.
#[cfg(target_arch = "x86_64")]
pub fn nested_svm() -> Need {
    let kvm = kvm();
    let missing = match kvm.missing {
        Some(reason) => Some(reason),
        None if machines::kvm::has_nested_svm() => None,
        None => Some("this KVM has no SVM for guests".to_owned()),
    };
    Need { name: "nested SVM", required_by: "REQUIRE_NESTED_SVM", missing }
}
