//! Regions whose accesses go on elsewhere, address by address.

use std::fmt;
use std::sync::Arc;

use crate::address_space::AddressSpace;

/// How often an access is translated before it is taken for one that never arrives.
pub(crate) const MAX_TRANSLATIONS: usize = 8;

/// Translates the accesses to a region into accesses to an address space: what a device
/// behind an IOMMU sees.
///
/// It is asked for each access that the bus makes, and keeps what it needs for a quick
/// answer; nothing here is to be told when a mapping changes. Called from whichever thread
/// makes the access, several at once perhaps, with no lock of this crate held.
///
/// Crates that know vm-memory do not see through such a region: its memory is in no view.
/// They have an `IommuMemory` of their own, to be put over the
/// [RAM](crate::FlatView::ram) of the target.
///
/// ```
/// use memory_region::{AddressSpace, Iommu, MapError, MemoryMap, Translation};
/// use ram_block::RamBlock;
/// use std::sync::Arc;
///
/// /// The device's first megabyte is memory from 16 MiB on, 4 KiB at a time.
/// struct Window(Arc<AddressSpace>);
///
/// impl Iommu for Window {
///     fn translate(&self, offset: u64, _write: bool) -> Translation {
///         let to = (offset < 1 << 20).then(|| (self.0.clone(), (16 << 20) + offset));
///         Translation { to, len: 4096 - offset % 4096 }
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("ram", 32 << 20)?;
/// let system = memory.update(|map| map.ram("ram", ram.clone()))?;
/// let system = memory.address_space("system", system)?;
/// let device = memory.update(|map| map.iommu("window", 1 << 64, Arc::new(Window(system))))?;
/// let device = memory.address_space("device", device)?;
/// device.write(0x1ffe, b"dma!")?;
/// let mut found = [0; 4];
/// ram.read((16 << 20) + 0x1ffe, &mut found)?;
/// assert_eq!(&found, b"dma!");
/// assert!(device.read(1 << 20, &mut found).is_err());
/// # Ok(())
/// # }
/// ```
pub trait Iommu: Send + Sync {
    /// Where the byte at `offset` of the region is for a read, or for a write. If it is
    /// nowhere, or not for such an access, the IOMMU notes a fault if it has a place for one;
    /// the access reads as all ones there, or is dropped.
    fn translate(&self, offset: u64, write: bool) -> Translation;
}

/// Where an [`Iommu`] sends an access.
#[derive(Clone, Debug)]
pub struct Translation {
    /// The address space in which it goes on, and the address there of the byte that was
    /// asked for; nowhere if there is none. The space may show an IOMMU again, as one stage
    /// of a translation after another, but not without end.
    pub to: Option<(Arc<AddressSpace>, u64)>,
    /// For how many bytes from that one on this holds; at least 1.
    pub len: u64,
}

impl fmt::Debug for dyn Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iommu")
    }
}
