//! The device's regions on a memory map.

use std::sync::Arc;

use memory_region::{MapError, MemoryMap, RegionId};

use crate::device::bar::Bar;
use crate::device::graphics_controller::WINDOW_BYTES;
use crate::device::ports::{LowWindow, Ports, VbePorts};
use crate::device::vga::Vga;
use crate::device::window::Window;
use crate::registers::ports;

/// The regions by which a guest accesses a [`Vga`]; the caller adds them to the machine's
/// address spaces.
///
/// As a device on PCI it is QEMU's standard VGA: vendor 0x1234, device 0x1111, class
/// 0x030000; BAR 0 is [`vram`](Self::vram), BAR 2 is [`mmio`](Self::mmio), and the command
/// register's bits map and unmap all of them.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VgaRegions {
    /// Video memory, in its full size: the PCI device's BAR 0.
    pub vram: RegionId,
    /// The low window of 128 KiB, for [`Vga::WINDOW`] of the memory bus.
    pub window: RegionId,
    /// The registers of the VGA, for [`Vga::PORTS`] of the port bus.
    pub ports: RegionId,
    /// The registers of the Bochs VBE extensions, for [`Vga::VBE_PORTS`].
    pub vbe_ports: RegionId,
    /// The same registers by MMIO, and the monitor's EDID, [`Vga::MMIO_BYTES`] long: the PCI
    /// device's BAR 2.
    pub mmio: RegionId,
}

impl Vga {
    /// Creates the device's regions on `memory`; the caller adds them to containers.
    ///
    /// In modes that allow it (256 colours in chain-4, and the banks of VBE modes) the device
    /// maps the low window as an alias of video memory, so that a guest on KVM accesses it without
    /// exits. A device belongs to one map.
    ///
    /// # Errors
    ///
    /// [`MapError::DuplicateBlock`].
    pub fn add_to(self: &Arc<Self>, memory: &Arc<MemoryMap>) -> Result<VgaRegions, MapError> {
        let count = u128::from(ports::COUNT);
        let size = u128::from(WINDOW_BYTES);
        let regions = memory.transaction(|map| {
            let vram = map.ram("vga.vram", self.vram().clone())?;
            let window = map.container("vga.window", size)?;
            let planes = map.mmio("vga.planes", size, Arc::new(LowWindow(self.clone())))?;
            map.add_subregion_overlap(window, 0, planes, 0)?;
            let ports = map.mmio("vga.ports", count, Arc::new(Ports(self.clone())))?;
            let vbe_ports = map.mmio("vga.vbe", 4, Arc::new(VbePorts(self.clone())))?;
            let mmio = map.mmio("vga.mmio", Self::MMIO_BYTES.into(), Arc::new(Bar::new(self)))?;
            Ok(VgaRegions { vram, window, ports, vbe_ports, mmio })
        })?;
        self.attach_window(Window::new(memory, regions.window, regions.vram));
        Ok(regions)
    }
}
