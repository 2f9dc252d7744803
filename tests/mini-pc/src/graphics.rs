//! The graphics card: a VGA as a PCI device.
//!
//! ISA's places (the low window and the ports) are the VGA's for good; the memory of its
//! BARs is where the firmware puts it. Guests know this card as QEMU's "standard VGA".

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use display_vga::{Vga, VgaRegions};
use memory_region::{MapError, MemoryMap, RegionId};
use ram_block::RamBlock;

use super::layout::Layout;
use super::pci::{COMMAND, Config, Function, Identity, MEMORY, ROM_BAR};
use machines::demo::AnyError;

/// The card's first BAR: video memory, prefetchable.
const VRAM_BAR: u8 = 0x10;
const PREFETCHABLE: u32 = 1 << 3;
/// The third: the registers as memory.
const MMIO_BAR: u8 = 0x18;
/// In a ROM's address register: it answers.
const ROM_ENABLED: u32 = 1;

/// Places the VGA's regions and makes its PCI function, with the VGA BIOS `rom` if there is
/// one.
///
/// # Errors
///
/// If the ROM cannot be one.
pub fn graphics(
    layout: &Layout,
    vga: &Arc<Vga>,
    rom: Option<&[u8]>,
) -> Result<(VgaRegions, Function), AnyError> {
    let regions = vga.add_to(&layout.memory)?;
    layout.memory.transaction(|map| {
        map.add_subregion_overlap(layout.pci, Vga::WINDOW, regions.window, 0)?;
        map.add_subregion(layout.ports, Vga::PORTS, regions.ports)?;
        map.add_subregion(layout.ports, Vga::VBE_PORTS, regions.vbe_ports)
    })?;
    let vram_size = u32::try_from(vga.vram().len())?;
    let identity =
        Identity { vendor: 0x1234, device: 0x1111, class: 0x03_0000, multifunction: false };
    let mmio_size = u32::try_from(Vga::MMIO_BYTES)?;
    let mut function = Function::new(identity)
        .memory_bar(VRAM_BAR, vram_size, PREFETCHABLE)
        .memory_bar(MMIO_BAR, mmio_size, 0);
    let mut bars = vec![
        Bar::new(VRAM_BAR, regions.vram, vram_size),
        Bar::new(MMIO_BAR, regions.mmio, mmio_size),
    ];
    if let Some(rom) = rom {
        let (region, size) = rom_region(&layout.memory, rom)?;
        function = function.rom_bar(size);
        bars.push(Bar::new(ROM_BAR, region, size));
    }
    let (memory, pci) = (layout.memory.clone(), layout.pci);
    let bars = Mutex::new(bars);
    let told = AtomicBool::new(false);
    let function = function.followed_by(move |config| {
        for bar in bars.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if let Err(error) = bar.follow(config, &memory, pci) {
                // A guest can bring this about again and again.
                let again = told.swap(true, Ordering::Relaxed);
                let level = if again { log::Level::Debug } else { log::Level::Error };
                log::log!(level, "The BAR at {:#x}: {error}", bar.register);
            }
        }
    });
    Ok((regions, function))
}

/// A ROM of a size that a BAR can have.
fn rom_region(memory: &MemoryMap, rom: &[u8]) -> Result<(RegionId, u32), AnyError> {
    const MOST: usize = 1 << 20;
    if rom.is_empty() || rom.len() > MOST {
        let found = rom.len();
        return Err(format!("The VGA BIOS has {found} bytes; up to {MOST} are possible").into());
    }
    let size = u32::try_from(rom.len())?.next_power_of_two().max(0x1000);
    let block = RamBlock::anonymous("vga.rom", size.into())?;
    block.write(0, rom)?;
    Ok((memory.transaction(|map| map.rom("vga rom", block))?, size))
}

/// A region that is where a register says.
struct Bar {
    register: u8,
    region: RegionId,
    size: u32,
    /// Where it is now.
    placed: Option<u64>,
}

impl Bar {
    fn new(register: u8, region: RegionId, size: u32) -> Self {
        Self { register, region, size, placed: None }
    }

    /// Where the registers want it. The topmost place is that of a guest which asks for the
    /// size.
    fn wanted(&self, config: &Config) -> Option<u64> {
        let value = config.u32(self.register);
        let answers = config.u16(COMMAND) & MEMORY != 0
            && (self.register != ROM_BAR || value & ROM_ENABLED != 0);
        let address = value & !(self.size - 1);
        let fits = address != 0 && address.checked_add(self.size).is_some();
        (answers && fits).then_some(address.into())
    }

    fn follow(
        &mut self,
        config: &Config,
        memory: &MemoryMap,
        pci: RegionId,
    ) -> Result<(), MapError> {
        let wanted = self.wanted(config);
        if wanted == self.placed {
            return Ok(());
        }
        memory.transaction(|map| {
            if self.placed.is_some() {
                map.del_subregion(self.region)?;
            }
            match wanted {
                Some(address) => map.add_subregion_overlap(pci, address, self.region, 1),
                None => Ok(()),
            }
        })?;
        self.placed = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memory_region::MmioDevice;

    use super::*;
    use crate::pci::PciBus;
    use crate::wires::ResetLine;

    #[test]
    fn memory_is_where_the_registers_say() {
        let layout = Layout::new(16 << 20, None).unwrap();
        let vga = Vga::new("vga.vram", 16 << 20).unwrap();
        let (_, function) = graphics(&layout, &vga, Some(&[0x55, 0xaa, 7])).unwrap();
        let bus = PciBus::new([((2, 0), function)], ResetLine::new(|| ()));
        let set = |register: u64, value: u64| {
            bus.write(0, 4, 1 << 31 | 2 << 11 | register);
            bus.write(4, 4, value);
        };
        let byte = |address| {
            let mut byte = [0];
            layout.space.read(address, &mut byte).map(|()| byte[0]).ok()
        };
        vga.vram().write(0x10_0000, &[0x77]).unwrap();
        set(0x10, 0xe000_0000);
        assert_eq!(byte(0xe010_0000), None);
        set(4, 2);
        assert_eq!(byte(0xe010_0000), Some(0x77));
        set(0x10, 0xfd00_0000);
        assert_eq!([byte(0xe010_0000), byte(0xfd10_0000)], [None, Some(0x77)]);
        set(0x30, 0xfe00_0000);
        assert_eq!(byte(0xfe00_0001), None);
        set(0x30, 0xfe00_0001);
        assert_eq!(byte(0xfe00_0001), Some(0xaa));
        // Over RAM it does not show, at the top it is not placed, nor over itself.
        set(0x10, 0);
        set(0x10, u64::from(u32::MAX));
        set(0x30, 0xfd00_0001);
        set(0x10, 0xfd00_0000);
        assert!(byte(0xfd00_0001).is_some());
        set(4, 0);
        assert_eq!([0xfd00_0001, 0xfe00_0001, 0xe010_0000].map(byte), [None; 3]);
    }
}
