//! The memory map of a PC with an Intel 440FX: RAM in front of the PCI address space, and
//! the first megabyte's segments that show either.

use std::sync::Arc;

use memory_region::{AddressSpace, MapError, MemoryMap, RegionId};
use ram_block::RamBlock;

use machines::demo::AnyError;

const FOUR_GIB: u64 = 1 << 32;
/// Where RAM ends for the first time, and where it goes on.
const CONVENTIONAL: u64 = 0xa_0000;
const HIGH_MEMORY: u64 = 1 << 20;
/// How far RAM below 4 GiB may reach; the rest of it begins at 4 GiB.
const LOW_RAM: u64 = 0xc000_0000;
/// How much of the firmware shows below 1 MiB too, in bytes: its end.
const ISA_FIRMWARE: u64 = 0x2_0000;
/// How far below 4 GiB the firmware may reach: there is the local APIC.
const MOST_FIRMWARE: u64 = 16 << 20;

/// The segments of the programmable attribute map in the order of the bridge's registers'
/// fields (Intel 82441FX, section 3.2.18), as (start, size): the BIOS's, then twelve of 16 KiB.
pub const SEGMENTS: [(u64, u64); 13] = {
    let mut segments = [(0xf_0000, 0x1_0000); 13];
    let mut n = 1;
    while n < segments.len() {
        segments[n] = (0xc_0000 + (n as u64 - 1) * 0x4000, 0x4000);
        n += 1;
    }
    segments
};

/// What a segment shows. (A segment that is only written, which the bridge could do too, is
/// taken for one that shows PCI.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// What PCI has there: for the BIOS, its ROM.
    Pci,
    /// RAM that keeps what it has.
    ReadOnlyRam,
    /// RAM.
    Ram,
}

/// The memory and port maps, with RAM and firmware in place.
#[derive(Debug)]
pub struct Layout {
    /// The map.
    pub memory: Arc<MemoryMap>,
    /// What processors see as memory.
    pub space: Arc<AddressSpace>,
    /// What processors see as I/O ports.
    pub port_space: Arc<AddressSpace>,
    /// The PCI address space, for devices with memory: all that is not RAM.
    pub pci: RegionId,
    /// The I/O ports, for devices.
    pub ports: RegionId,
    /// RAM.
    pub ram: Arc<RamBlock>,
    /// A window on RAM and one on PCI for each of [`SEGMENTS`].
    windows: [[RegionId; 2]; SEGMENTS.len()],
}

impl Layout {
    /// A map with `ram_size` bytes of RAM and, if there is one, a firmware that ends at 4 GiB.
    ///
    /// # Errors
    ///
    /// If there is no memory for it, or the firmware has no size that a flash chip has.
    pub fn new(ram_size: u64, firmware: Option<&[u8]>) -> Result<Self, AnyError> {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("pc.ram", ram_size)?;
        let rom = firmware.map(firmware_block).transpose()?;
        let (system, pci, ports, windows) = memory.transaction(|map| {
            let system = map.container("system", 1 << 64)?;
            let ports = map.container("ports", 1 << 16)?;
            let pci = map.container("pci", FOUR_GIB.into())?;
            let all = map.ram("ram", ram.clone())?;
            // None between 640 KiB and 1 MiB: where nothing answers there, RAM does not either.
            let high_memory = ram_size.min(LOW_RAM) - HIGH_MEMORY;
            let conventional = map.alias("conventional ram", all, 0, CONVENTIONAL.into())?;
            let extended = map.alias("extended ram", all, HIGH_MEMORY, high_memory.into())?;
            map.add_subregion_overlap(system, 0, pci, -1)?;
            map.add_subregion_overlap(system, 0, conventional, 0)?;
            map.add_subregion_overlap(system, HIGH_MEMORY, extended, 0)?;
            if ram_size > LOW_RAM {
                let high = map.alias("high ram", all, LOW_RAM, (ram_size - LOW_RAM).into())?;
                map.add_subregion(system, FOUR_GIB, high)?;
            }
            if let Some(rom) = &rom {
                let size = rom.len();
                let shown = size.min(ISA_FIRMWARE);
                let flash = map.rom("firmware", rom.clone())?;
                let isa = map.alias("isa firmware", flash, size - shown, shown.into())?;
                // In front of whatever a guest places there.
                map.add_subregion_overlap(pci, FOUR_GIB - size, flash, 2)?;
                map.add_subregion_overlap(pci, HIGH_MEMORY - shown, isa, 2)?;
            }
            // KVM answers for the interrupt controllers.
            for (name, at, size) in
                [("ioapic", 0xfec0_0000, 0x1000), ("lapic", 0xfee0_0000, 0x10_0000)]
            {
                let reserved = map.reservation(name, size)?;
                map.add_subregion_overlap(system, at, reserved, 1)?;
            }

            let mut segment = |(start, size): (u64, u64)| {
                let shadow = map.alias("shadow ram", all, start, size.into())?;
                let below = map.alias("shadow pci", pci, start, size.into())?;
                map.set_enabled(shadow, false)?;
                map.add_subregion_overlap(system, start, shadow, 1)?;
                map.add_subregion_overlap(system, start, below, 1)?;
                Ok::<_, MapError>([shadow, below])
            };
            let mut windows = Vec::new();
            for segment_place in SEGMENTS {
                windows.push(segment(segment_place)?);
            }
            let windows = std::array::from_fn(|n| windows[n]);
            Ok::<_, MapError>((system, pci, ports, windows))
        })?;
        let space = memory.address_space("memory", system)?;
        let port_space = memory.address_space("io", ports)?;
        Ok(Self { memory, space, port_space, pci, ports, ram, windows })
    }

    /// Bytes of RAM below 4 GiB.
    pub fn low_ram(&self) -> u64 {
        self.ram.len().min(LOW_RAM)
    }

    /// Bytes of RAM from 4 GiB on.
    pub fn high_ram(&self) -> u64 {
        self.ram.len() - self.low_ram()
    }

    /// What sets the segments from now on.
    pub fn shadow(&self) -> Shadow {
        Shadow { memory: self.memory.clone(), windows: self.windows }
    }
}

/// Sets what the segments of the first megabyte show.
#[derive(Debug)]
pub struct Shadow {
    memory: Arc<MemoryMap>,
    windows: [[RegionId; 2]; SEGMENTS.len()],
}

impl Shadow {
    /// Lets each of [`SEGMENTS`] show what `states` says, in one transaction.
    ///
    /// # Errors
    ///
    /// [`MapError::Refused`] if a listener cannot follow.
    pub fn set(&self, states: [Segment; SEGMENTS.len()]) -> Result<(), MapError> {
        self.memory.transaction(|map| {
            for ([ram, pci], state) in self.windows.into_iter().zip(states) {
                map.set_enabled(ram, state != Segment::Pci)?;
                map.set_readonly(ram, state == Segment::ReadOnlyRam)?;
                map.set_enabled(pci, state == Segment::Pci)?;
            }
            Ok(())
        })
    }
}

/// A ROM with the firmware.
fn firmware_block(bytes: &[u8]) -> Result<Arc<RamBlock>, AnyError> {
    let size = bytes.len() as u64;
    if size == 0 || !size.is_multiple_of(0x1_0000) || size > MOST_FIRMWARE {
        let most = MOST_FIRMWARE >> 20;
        return Err(format!(
            "The firmware has {size} bytes; a multiple of 64 KiB up to {most} MiB is needed"
        )
        .into());
    }
    let rom = RamBlock::anonymous("pc.firmware", size)?;
    rom.write(0, bytes)?;
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(layout: &Layout, address: u64) -> u8 {
        let mut byte = [0];
        // All ones where nothing answers.
        let _ = layout.space.read(address, &mut byte);
        byte[0]
    }

    #[test]
    fn segments_show_pci_then_ram_then_ram_that_is_kept() {
        let firmware: Vec<u8> = (0..4u8).flat_map(|n| [0xb0 + n; 0x1_0000]).collect();
        let layout = Layout::new(64 << 20, Some(&firmware)).unwrap();
        let shadow = layout.shadow();
        // The end of the firmware, at 4 GiB and below 1 MiB.
        let places = [0xe_0000, 0xf_0000, 0xffff_0000, 0xfffc_0000];
        assert_eq!(places.map(|at| byte(&layout, at)), [0xb2, 0xb3, 0xb3, 0xb0]);
        for (n, (start, size)) in SEGMENTS.into_iter().enumerate() {
            let mut states = [Segment::Pci; SEGMENTS.len()];
            let before = byte(&layout, start);
            states[n] = Segment::Ram;
            shadow.set(states).unwrap();
            let last = start + size - 1;
            layout.space.write(last, &[0x5a]).unwrap();
            assert_eq!([start, last].map(|at| byte(&layout, at)), [0, 0x5a], "segment {n}");
            states[n] = Segment::ReadOnlyRam;
            shadow.set(states).unwrap();
            assert!(layout.space.write(last, &[1]).is_err());
            assert_eq!(byte(&layout, last), 0x5a, "segment {n}");
            shadow.set([Segment::Pci; SEGMENTS.len()]).unwrap();
            assert_eq!(byte(&layout, start), before, "segment {n}");
        }
    }

    #[test]
    fn ram_makes_room_for_pci() {
        let layout = Layout::new(4 << 30, None).unwrap();
        assert_eq!((layout.low_ram(), layout.high_ram()), (3 << 30, 1 << 30));
        layout.space.write(FOUR_GIB + 5, &[7]).unwrap();
        let mut back = [0];
        layout.ram.read(LOW_RAM + 5, &mut back).unwrap();
        assert_eq!(back, [7]);
        assert!(layout.space.write(LOW_RAM, &[7]).is_err());
        assert!(Layout::new(64 << 20, Some(&[0; 1000])).is_err());
    }
}
