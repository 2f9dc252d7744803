//! The memory map of a PC, built as in the example of QEMU's documentation of its memory
//! API: RAM that makes room for the PCI hole, a VGA window, ROM at the top of the hole and
//! of the first megabyte, and shadow RAM over it.

use std::sync::Arc;

use memory_region::{AddressSpace, MapError, MemoryMap, MmioDevice, RegionId};
use ram_block::RamBlock;

use crate::demo::AnyError;

/// Where the PCI hole begins, as a guest-physical address; RAM goes on at 4 GiB.
pub const HOLE: u64 = 0xe000_0000;
/// The size of the BIOS in bytes; it ends at 4 GiB and, as a copy, at 1 MiB.
pub const BIOS_SIZE: u64 = 0x1_0000;
/// Where the copy of the BIOS begins.
pub const ISA_BIOS: u64 = 0x10_0000 - BIOS_SIZE;
/// The programmable attribute map: its segments, as (start, size). The last is the BIOS.
pub const PAM: [(u64, u64); 4] =
    [(0xc_0000, 0x8000), (0xc_8000, 0x8000), (0xd_0000, 0x2_0000), (ISA_BIOS, BIOS_SIZE)];

const FOUR_GIB: u64 = 1 << 32;

/// What a segment of the attribute map shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pam {
    /// What PCI has there: for the BIOS, its ROM.
    Pci,
    /// RAM that can be read, but not written.
    ReadOnly,
    /// RAM.
    Ram,
}

/// A PC's memory.
#[derive(Debug)]
pub struct Pc {
    /// The memory map.
    pub memory: Arc<MemoryMap>,
    /// What processors see.
    pub space: Arc<AddressSpace>,
    /// The root of that.
    pub system: RegionId,
    /// The PCI address space.
    pub pci: RegionId,
    /// RAM.
    pub ram: Arc<RamBlock>,
    /// Video memory.
    pub vram: Arc<RamBlock>,
    /// The region of video memory.
    pub vram_region: RegionId,
    /// The BIOS.
    pub bios: Arc<RamBlock>,
    /// A window on RAM and one on PCI for each segment.
    pam: [[RegionId; 2]; PAM.len()],
}

impl Pc {
    /// A PC with `ram_size` bytes of RAM, more than 1 MiB. `vga` are a display's registers.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn new(ram_size: u64, vga: Arc<dyn MmioDevice>) -> Result<Self, AnyError> {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("pc.ram", ram_size)?;
        let vram = RamBlock::anonymous("vga.vram", 16 << 20)?;
        let bios = RamBlock::anonymous("pc.bios", BIOS_SIZE)?;
        let (system, pci, vram_region, pam) = memory.transaction(|map| {
            let system = map.container("system", 1 << 48)?;
            let pci = map.container("pci", FOUR_GIB.into())?;
            let all = map.ram("ram", ram.clone())?;
            let low = map.alias("lomem", all, 0, ram_size.min(HOLE).into())?;
            map.add_subregion_overlap(system, 0, low, 0)?;
            if ram_size > HOLE {
                let high = map.alias("himem", all, HOLE, (ram_size - HOLE).into())?;
                map.add_subregion(system, FOUR_GIB, high)?;
            }
            let window = map.alias("vga-window", pci, 0xa_0000, 0x2_0000)?;
            let hole = map.alias("pci-hole", pci, HOLE, (FOUR_GIB - HOLE).into())?;
            map.add_subregion_overlap(system, 0xa_0000, window, 1)?;
            map.add_subregion(system, HOLE, hole)?;

            let vram_region = map.ram("vram", vram.clone())?;
            let area = map.container("vga-area", 0x2_0000)?;
            for (bank, at) in [(0x1_0000, 0), (0x2_0000, 0x8000)] {
                let bank = map.alias("bank", vram_region, bank, 0x8000)?;
                map.add_subregion(area, at, bank)?;
            }
            let registers = map.mmio("vga-mmio", 0x1_0000, vga)?;
            let rom = map.rom("bios", bios.clone())?;
            let isa = map.alias("isa-bios", rom, 0, BIOS_SIZE.into())?;
            map.add_subregion(pci, 0xa_0000, area)?;
            map.add_subregion(pci, 0xe100_0000, vram_region)?;
            map.add_subregion(pci, 0xe200_0000, registers)?;
            map.add_subregion(pci, FOUR_GIB - BIOS_SIZE, rom)?;
            map.add_subregion(pci, ISA_BIOS, isa)?;

            let mut segment = |(start, size): (u64, u64)| {
                let shadow = map.alias("pam-ram", all, start, size.into())?;
                let below = map.alias("pam-pci", pci, start, size.into())?;
                map.set_enabled(shadow, false)?;
                map.add_subregion_overlap(system, start, shadow, 1)?;
                map.add_subregion_overlap(system, start, below, 1)?;
                Ok::<_, MapError>([shadow, below])
            };
            let [a, b, c, d] = PAM;
            let pam = [segment(a)?, segment(b)?, segment(c)?, segment(d)?];
            Ok((system, pci, vram_region, pam))
        })?;
        let space = memory.address_space("memory", system)?;
        Ok(Self { memory, space, system, pci, ram, vram, vram_region, bios, pam })
    }

    /// Programs segment `number` of [`PAM`].
    ///
    /// # Errors
    ///
    /// If a listener refuses.
    pub fn set_pam(&self, number: usize, state: Pam) -> Result<(), MapError> {
        let [ram, pci] = self.pam[number];
        self.memory.transaction(|map| {
            map.set_enabled(ram, state != Pam::Pci)?;
            map.set_readonly(ram, state == Pam::ReadOnly)?;
            map.set_enabled(pci, state == Pam::Pci)
        })
    }
}
