//! The machines of these tests.

use std::sync::Arc;

use memory_region::{
    AccessSizes, AddressSpace, BusFault, MemoryMap, MmioAccess, MmioDevice, RegionId,
};
use ram_block::RamBlock;

pub(crate) fn ram(id: &str, len: u64) -> Arc<RamBlock> {
    RamBlock::anonymous(id, len).unwrap()
}

/// A space of 64 KiB with RAM at 0, a trap of 256 bytes at 0x8000, and a device at 0x9000.
pub(crate) fn machine(device: Arc<dyn MmioDevice>) -> (Arc<MemoryMap>, Arc<AddressSpace>) {
    let map = MemoryMap::new();
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 16)?;
        let memory = map.ram("ram", ram("ram", 0x8000))?;
        let trap = map.trap("uart", 0x100, 77)?;
        let device = map.mmio("device", 0x100, device)?;
        map.add_subregion(root, 0, memory)?;
        map.add_subregion(root, 0x8000, trap)?;
        map.add_subregion(root, 0x9000, device)?;
        Ok(root)
    });
    let space = map.address_space("cpu", root.unwrap()).unwrap();
    (map, space)
}

/// Answers offsets from 0x40 on with faults.
pub(crate) struct Faulty;

impl Faulty {
    fn check(offset: u64) -> Result<(), BusFault> {
        match offset {
            0..0x40 => Ok(()),
            0x40..0x80 => Err(BusFault::Device),
            0x80..0xc0 => Err(BusFault::Decode),
            _ => Err(BusFault::Access),
        }
    }
}

impl MmioDevice for Faulty {
    fn read(&self, _: u64, _: usize) -> u64 {
        0x1111_1111_1111_1111
    }

    fn write(&self, _: u64, _: usize, _: u64) {}

    fn try_read(&self, offset: u64, size: usize) -> Result<u64, BusFault> {
        Self::check(offset).map(|()| self.read(offset, size))
    }

    fn try_write(&self, offset: u64, _: usize, _: u64) -> Result<(), BusFault> {
        Self::check(offset)
    }

    fn access(&self) -> MmioAccess {
        MmioAccess { implemented: AccessSizes::aligned(4, 4), ..MmioAccess::default() }
    }
}

/// Root, the bank, an alias of it, and the block of a map in which aliases meet others.
pub(crate) struct Banked {
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) spaces: Vec<Arc<AddressSpace>>,
    pub(crate) aliases: Vec<RegionId>,
}

pub(crate) const BANK: u64 = 0x1000;

impl Banked {
    /// Three windows side by side on one block, one of them by an alias of an alias, one below
    /// another; a space of a single alias; and a device behind an alias.
    pub(crate) fn new() -> Self {
        let map = MemoryMap::new();
        let (aliases, roots) = map
            .transaction(|map| {
                let size = u128::from(BANK);
                let root = map.container("system", 1 << 16)?;
                let memory = map.ram("ram", ram("ram", 16 * BANK))?;
                let device = map.mmio("device", 16 * size, Arc::new(Faulty))?;
                let first = map.alias("first", memory, 0, size)?;
                let second = map.alias("second", memory, BANK, size)?;
                let inner = map.alias("inner", memory, 0, 4 * size)?;
                let outer = map.alias("outer", inner, 0, 2 * size)?;
                let below = map.alias("below", memory, 8 * BANK, 4 * size)?;
                let registers = map.alias("registers", device, 0, size)?;
                map.set_coalescing(device, &[0x100..0x140, 0x2100..0x2200])?;
                let only = map.alias("only", memory, 0, 8 * size)?;
                map.add_subregion(root, BANK, first)?;
                map.add_subregion(root, 2 * BANK, second)?;
                map.add_subregion(root, 3 * BANK, outer)?;
                map.add_subregion_overlap(root, 4 * BANK, below, -1)?;
                map.add_subregion(root, 9 * BANK, registers)?;
                Ok((vec![first, second, inner, outer, below, registers, only], [root, root, only]))
            })
            .unwrap();
        let space = |root| map.address_space("cpu", root).unwrap();
        let spaces = roots.into_iter().map(space).collect();
        Self { map, spaces, aliases }
    }

    pub(crate) fn views(&self) -> Vec<String> {
        let shown = |space: &Arc<AddressSpace>| {
            let view = space.view();
            // The look-up as well as the list.
            let found: Vec<_> = (0..16)
                .map(|page| view.section_at(page * BANK + 5).map(|section| section.start()))
                .collect();
            let events = (view.ioeventfds(), view.coalesced());
            #[cfg(feature = "vm-memory")]
            let events = (events, view.ram());
            format!("{:?} {found:?} {events:?}", view.sections())
        };
        self.spaces.iter().map(shown).collect()
    }
}
