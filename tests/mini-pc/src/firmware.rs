//! Firmware and programs of others that the small PC runs, where Debian's packages have them.

use std::path::Path;

/// SeaBIOS (Debian: `seabios`).
pub const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
/// Its VGA BIOS for the standard VGA.
pub const STDVGA: &str = "/usr/share/seabios/vgabios-stdvga.bin";
/// The VGA BIOS of Bochs (Debian: `vgabios`).
pub const BOCHS_VGABIOS: &str = "/usr/share/vgabios/vgabios.bin";
/// A test of memory that needs no operating system (Debian: `memtest86+`).
pub const MEMTEST: &str = "/boot/memtest86+x64.bin";

/// The first of these that is not here.
pub fn missing() -> Option<&'static str> {
    let all = [SEABIOS, STDVGA, BOCHS_VGABIOS, MEMTEST];
    all.into_iter().find(|path| !Path::new(path).exists())
}
