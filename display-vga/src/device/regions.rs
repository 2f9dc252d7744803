//! The device's regions on a memory map.

use std::sync::Arc;

use memory_region::{MapError, MemoryMap, RegionId};

use crate::device::bar::Bar;
use crate::device::graphics_controller::WINDOW_BYTES;
use crate::device::ports::{LowWindow, Ports, VbePorts};
use crate::device::vga::Vga;
use crate::device::window::Window;
use crate::registers::ports;

/// The regions by which a guest reaches a [`Vga`], to be placed where the machine has
/// them.
///
/// As a device on PCI it is QEMU's standard VGA: vendor 0x1234, device 0x1111, class
/// 0x030000; BAR 0 is [`vram`](Self::vram), BAR 2 is [`mmio`](Self::mmio), and the command
/// register's bits place and remove all of them.
#[derive(Clone, Copy, Debug)]
pub struct VgaRegions {
    /// Video memory, as large as it is: the PCI device's first BAR.
    pub vram: RegionId,
    /// The low window of 128 KiB, for [`Vga::WINDOW`] of the memory bus.
    pub window: RegionId,
    /// The registers of the VGA, for [`Vga::PORTS`] of the port bus.
    pub ports: RegionId,
    /// The registers of the Bochs VBE extensions, for [`Vga::VBE_PORTS`].
    pub vbe_ports: RegionId,
    /// The same registers as memory, and the monitor's EDID, in [`Vga::MMIO_BYTES`]: the PCI
    /// device's third BAR.
    pub mmio: RegionId,
}

impl Vga {
    /// The device's regions on `memory`, which are then to be placed.
    ///
    /// The low window is an alias of video memory in modes that allow it (256 colours in
    /// chain-4, and the banks of VBE modes), so that a guest on KVM draws there at the
    /// speed of memory; the device keeps that up to date. A device is on one map.
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
        self.keep_in_step(Window::new(memory, regions.window, regions.vram));
        Ok(regions)
    }
}
