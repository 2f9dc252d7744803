//! What a debugger does with a TLB.

use crate::cpu::tlb::Tlb;
use crate::fault::watchpoint::Watchpoint;

impl<const BITS: u32> Tlb<BITS> {
    /// Stops accesses of this TLB that reach `watchpoint`: they are not carried out, and fail with
    /// [`AccessError::Watchpoint`](crate::AccessError::Watchpoint). Instruction fetches are not
    /// stopped, nor what devices, other processors and accelerators do. An atomic access is a load
    /// and a store. Accesses to other pages cost what they do without watchpoints.
    ///
    /// ```
    /// # use memory_region::{AccessError, MemoryMap, Tlb, Watchpoint, WatchpointKind};
    /// # use ram_block::RamBlock;
    /// # let map = MemoryMap::new();
    /// # let root = map.transaction(|map| map.ram("ram", RamBlock::anonymous("ram", 1 << 20)?))?;
    /// # let mut tlb: Tlb = Tlb::new(&map.address_space("hart", root)?);
    /// let watchpoint = Watchpoint { address: 0x104, len: 4, kind: WatchpointKind::Write };
    /// tlb.insert_watchpoint(watchpoint);
    /// tlb.store_le(0x100, 1_u32)?;
    /// let stopped = tlb.store_le(0x100, 2_u64);
    /// assert!(matches!(stopped, Err(AccessError::Watchpoint { .. })));
    /// // The debugger goes on:
    /// tlb.ignoring_watchpoints(|tlb| tlb.store_le(0x100, 2_u64))?;
    /// assert!(tlb.remove_watchpoint(watchpoint));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert_watchpoint(&mut self, watchpoint: Watchpoint) {
        self.watchpoints.all.push(watchpoint);
        self.take_all_tags();
    }

    /// Removes a watchpoint; returns whether there was one like this.
    pub fn remove_watchpoint(&mut self, watchpoint: Watchpoint) -> bool {
        let at = self.watchpoints.all.iter().position(|other| *other == watchpoint);
        if let Some(at) = at {
            self.watchpoints.all.remove(at);
            self.take_all_tags();
        }
        at.is_some()
    }

    /// Calls `access` while no watchpoint stops anything: for the instruction that was stopped.
    pub fn ignoring_watchpoints<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.watchpoints.ignored, true);
        self.take_all_tags();
        let again = Again { tlb: self, before };
        access(&mut *again.tlb)
    }
}

/// Lets watchpoints stop accesses again when it is dropped, also by a panic.
struct Again<'a, const BITS: u32> {
    tlb: &'a mut Tlb<BITS>,
    before: bool,
}

impl<const BITS: u32> Drop for Again<'_, BITS> {
    fn drop(&mut self) {
        self.tlb.watchpoints.ignored = self.before;
        self.tlb.take_all_tags();
    }
}
