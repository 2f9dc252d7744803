//! Firmware and programs of others that the small PC runs, where Debian's packages have them.

use std::path::Path;

use crate::harness::Need;
use crate::kvm;

/// SeaBIOS (Debian: `seabios`).
pub const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
/// Its VGA BIOS for the standard VGA.
pub const STDVGA: &str = "/usr/share/seabios/vgabios-stdvga.bin";
/// The VGA BIOS of Bochs (Debian: `vgabios`).
pub const BOCHS_VGABIOS: &str = "/usr/share/vgabios/vgabios.bin";
/// A test of memory that needs no operating system (Debian: `memtest86+`).
pub const MEMTEST: &str = "/boot/memtest86+x64.bin";

/// What tests need that run these on KVM.
pub fn need() -> Need {
    let kvm = kvm::need();
    if kvm.missing.is_some() {
        return kvm;
    }
    let missing = [SEABIOS, STDVGA, BOCHS_VGABIOS, MEMTEST]
        .into_iter()
        .find(|path| !Path::new(path).exists());
    let missing = missing.map(|path| format!("there is no {path}"));
    Need {
        name: "SeaBIOS, Bochs' VGA BIOS and memtest86+",
        required_by: "REQUIRE_FIRMWARE",
        missing,
    }
}
