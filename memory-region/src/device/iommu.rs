//! Regions whose accesses go on elsewhere, address by address.

use std::fmt;
use std::sync::Arc;

use crate::error::AccessError;

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
///         let len = 4096 - offset % 4096;
///         if offset < 1 << 20 {
///             Translation::to(&self.0, (16 << 20) + offset, len)
///         } else {
///             Translation::nowhere(len)
///         }
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = MemoryMap::new();
/// let ram = RamBlock::anonymous("ram", 32 << 20)?;
/// let system = memory.transaction(|map| map.ram("ram", ram.clone()))?;
/// let system = memory.address_space("system", system)?;
/// let device = memory.transaction(|map| map.iommu("window", 1 << 64, Arc::new(Window(system))))?;
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

/// Where an [`Iommu`] sends an access: [`to`](Self::to) an address space, or
/// [`nowhere`](Self::nowhere).
#[derive(Clone)]
pub struct Translation {
    /// Where it goes on, and the address there of the byte that was asked for.
    pub(crate) target: Option<(Arc<dyn Bus>, u64)>,
    /// For how many bytes from that one on this holds; at least 1.
    pub(crate) len: u64,
}

impl Translation {
    /// No place for `len` bytes (of which 0 counts as 1) from the one that was asked for on.
    pub fn nowhere(len: u64) -> Self {
        Self { target: None, len }
    }
}

impl fmt::Debug for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.target.as_ref().map(|(_, address)| address);
        f.debug_struct("Translation").field("address", &address).field("len", &self.len).finish()
    }
}

/// What answers accesses that were translated: an address space, which stands above devices.
pub(crate) trait Bus: Send + Sync {
    /// Reads at `address`, after so many translations.
    fn read_translated(
        &self,
        address: u64,
        translations: usize,
        data: &mut [u8],
    ) -> Result<(), AccessError>;

    /// Writes at `address`, after so many translations.
    fn write_translated(
        &self,
        address: u64,
        translations: usize,
        data: &[u8],
    ) -> Result<(), AccessError>;
}

impl fmt::Debug for dyn Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iommu")
    }
}
