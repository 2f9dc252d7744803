//! What a translator of code asks: where code is, and whether that may have changed.

use std::sync::Arc;

use ram_block::RamBlock;

use crate::cpu::tlb::Tlb;

impl<const BITS: u32> Tlb<BITS> {
    /// The block that has `address` in memory that can be read, the offset there, and for how many
    /// bytes from there on it answers. A translator watches the pages
    /// ([`CodeWatch`](ram_block::CodeWatch)) before it reads them, and asks again once the
    /// [`generation`](Self::generation) is no longer the one that it had read *before* it asked.
    pub fn ram_at(&mut self, address: u64) -> Option<(&Arc<RamBlock>, u64, u64)> {
        self.keep_up();
        let address = address & self.mask;
        let section = self.view.find(address).ok()?;
        let offset = section.offset + (address - section.start);
        let block = section.ram()?;
        let last = section.last.min(self.mask);
        // A region may be longer than its block.
        let len = (last - address).saturating_add(1).min(block.len().checked_sub(offset)?);
        (len > 0).then_some((block, offset, len))
    }

    /// A number that grows with each commit that changes the space: as long as it is the same, all
    /// addresses are of what they were of. Costs a load: compare it before each block of translated
    /// code. A hart that has reason to know of a commit finds the new number.
    ///
    /// ```
    /// # use memory_region::{MemoryMap, Tlb};
    /// # use ram_block::RamBlock;
    /// # let map = MemoryMap::new();
    /// # let (root, bank) = map.transaction(|map| {
    /// #     let root = map.container("cpu", 1 << 16)?;
    /// #     let rom = map.rom("cartridge", RamBlock::anonymous("rom", 64 << 10)?)?;
    /// #     let bank = map.alias("bank", rom, 0, 0x4000)?;
    /// #     map.add_subregion(root, 0x8000, bank)?;
    /// #     Ok((root, bank))
    /// # })?;
    /// let mut tlb: Tlb = Tlb::new(&map.address_space("cpu", root)?);
    /// let (_, offset, len) = tlb.ram_at(0x8010).expect("memory");
    /// assert_eq!((offset, len), (0x10, 0x3ff0));
    /// let generation = tlb.generation();
    /// map.set_alias_offset(bank, 0x4000)?;
    /// assert_ne!(tlb.generation(), generation);
    /// assert_eq!(tlb.ram_at(0x8010).map(|(_, offset, _)| offset), Some(0x4010));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.current.number()
    }
}
