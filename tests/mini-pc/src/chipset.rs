//! The chipset: Intel's 440FX host bridge, and the PIIX3's bridge to ISA with its IDE.

use std::sync::atomic::{AtomicBool, Ordering};

use memory_region::MapError;

use super::layout::{SEGMENTS, Segment, Shadow};
use super::pci::{Config, Function, Identity};

const INTEL: u16 = 0x8086;
/// The first of the registers of the programmable attribute map, of seven.
const PAM: u8 = 0x59;
const PAM_REGISTERS: u8 = 7;

/// The host bridge (82441FX), whose attribute map decides what the first megabyte shows.
pub fn host_bridge(shadow: Shadow) -> Function {
    let identity =
        Identity { vendor: INTEL, device: 0x1237, class: 0x06_0000, multifunction: false };
    let attributes = [0x33; PAM_REGISTERS as usize];
    let told = AtomicBool::new(false);
    Function::new(identity).register(PAM, &[0; PAM_REGISTERS as usize], &attributes).followed_by(
        move |config| {
            follow(&shadow, config).unwrap_or_else(|error| {
                // A guest can bring this about again and again.
                let again = told.swap(true, Ordering::Relaxed);
                let level = if again { log::Level::Debug } else { log::Level::Error };
                log::log!(level, "The attribute map: {error}");
            })
        },
    )
}

/// Lets the map show what the attributes say.
///
/// The upper half of the first register is for the BIOS's segment; each half of the others,
/// the lower first, is for one of 16 KiB.
fn follow(shadow: &Shadow, config: &Config) -> Result<(), MapError> {
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    let state = |half: u8| match (half & READ != 0, half & WRITE != 0) {
        (true, true) => Segment::Ram,
        (true, false) => Segment::ReadOnlyRam,
        (false, _) => Segment::Pci,
    };
    let mut halves = (PAM..PAM + PAM_REGISTERS).flat_map(|register| {
        let byte = config.u8(register);
        [byte & 0xf, byte >> 4]
    });
    halves.next(); // reserved
    let mut states = [Segment::Pci; SEGMENTS.len()];
    states.iter_mut().zip(halves).for_each(|(segment, half)| *segment = state(half));
    shadow.set(states)
}

/// The bridge to ISA (82371SB), by which guests know that ISA's devices are there. Its
/// routing of PCI's interrupts holds what it is given: no device here has one.
pub fn isa_bridge() -> Function {
    let identity =
        Identity { vendor: INTEL, device: 0x7000, class: 0x06_0100, multifunction: true };
    Function::new(identity).register(0x60, &[0x80; 4], &[0x8f; 4])
}

/// The IDE function of that bridge, in the mode in which its drives are at ISA's ports.
pub fn ide() -> Function {
    let identity =
        Identity { vendor: INTEL, device: 0x7010, class: 0x01_0180, multifunction: false };
    // The primary channel's ports answer, the secondary's do not.
    Function::new(identity).register(0x40, &[0, 0x80, 0, 0], &[0xff, 0xff, 0xff, 0xff])
}

#[cfg(test)]
mod tests {
    use memory_region::MmioDevice;

    use super::*;
    use crate::layout::Layout;
    use crate::pci::PciBus;
    use crate::wires::ResetLine;

    #[test]
    fn each_half_of_a_register_is_a_segment() {
        let layout = Layout::new(16 << 20, None).unwrap();
        let bus = PciBus::new([((0, 0), host_bridge(layout.shadow()))], ResetLine::new(|| ()));
        let set = |register: u64, value: u64| {
            bus.write(0, 4, 1 << 31 | register & 0xfc);
            bus.write(4 + (register & 3), 1, value);
        };
        // From the manual: the register and the half of it that is for the segment.
        let manual = [(0x59, 4), (0x5a, 0), (0x5a, 4), (0x5b, 0), (0x5b, 4), (0x5c, 0), (0x5c, 4)]
            .into_iter()
            .chain([(0x5d, 0), (0x5d, 4), (0x5e, 0), (0x5e, 4), (0x5f, 0), (0x5f, 4)]);
        for ((start, size), (register, shift)) in SEGMENTS.into_iter().zip(manual) {
            let writable = || {
                let is_ram = |at: &u64| layout.space.write(*at, &[1]).is_ok();
                (0xc_0000..0x10_0000).step_by(0x4000).filter(is_ram).collect::<Vec<u64>>()
            };
            set(register, 3 << shift);
            assert_eq!(writable(), (start..start + size).step_by(0x4000).collect::<Vec<u64>>());
            set(register, 1 << shift);
            let mut byte = [0];
            assert_eq!(writable(), [0; 0]);
            layout.space.read(start, &mut byte).unwrap();
            assert_eq!(byte, [1]);
            set(register, 0);
        }
    }
}
