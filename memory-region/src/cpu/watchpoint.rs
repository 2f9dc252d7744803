//! Watchpoints: loads and stores that a debugger stops.

use std::fmt;

use crate::cpu::tlb::Tlb;
use crate::error::AccessError;

/// Which accesses a watchpoint stops: the kinds of GDB's remote protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchpointKind {
    /// Stores (`Z2`).
    Write,
    /// Loads (`Z3`).
    Read,
    /// Both (`Z4`).
    Access,
}

/// A range of addresses of which a debugger wants to see accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// The first byte.
    pub address: u64,
    /// How many bytes, on to the end of the 64-bit space at most.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchpointKind,
}

impl Watchpoint {
    /// Whether it stops loads and stores.
    fn stops(self) -> (bool, bool) {
        (self.kind != WatchpointKind::Write, self.kind != WatchpointKind::Read)
    }

    /// Whether it has a byte from `first` to `last`.
    fn has_any(self, first: u64, last: u64) -> bool {
        let own = self.len.checked_sub(1).map(|more| self.address.saturating_add(more));
        own.is_some_and(|own| self.address <= last && first <= own)
    }
}

impl fmt::Display for Watchpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, len, kind } = self;
        write!(f, "{kind:?} of {len} bytes at {address:#x}")
    }
}

/// The watchpoints of a TLB. Pages with one have no tag for what it stops, so that accesses to
/// others do not look here.
#[derive(Debug, Default)]
pub(super) struct Watchpoints {
    all: Vec<Watchpoint>,
    ignored: bool,
}

impl Watchpoints {
    /// Whether loads from `first` to `last`, and stores there, may be stopped.
    pub(super) fn stops_in(&self, first: u64, last: u64) -> (bool, bool) {
        let here = self.active().filter(|watchpoint| watchpoint.has_any(first, last));
        here.map(Watchpoint::stops)
            .fold((false, false), |(load, store), (loads, stores)| (load || loads, store || stores))
    }

    fn active(&self) -> impl Iterator<Item = Watchpoint> {
        self.all.iter().copied().filter(|_| !self.ignored)
    }

    /// The first that stops a load, or a store, of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`AccessError::Watchpoint`].
    pub(super) fn check(&self, address: u64, len: usize, store: bool) -> Result<(), AccessError> {
        let last = address.saturating_add(len as u64 - 1);
        let mut active = self.active();
        let hit = active.find(|watchpoint| {
            let (loads, stores) = watchpoint.stops();
            (if store { stores } else { loads }) && watchpoint.has_any(address, last)
        });
        hit.map_or(Ok(()), |watchpoint| Err(AccessError::Watchpoint { address, len, watchpoint }))
    }
}

impl<const BITS: u32> Tlb<BITS> {
    /// Stops accesses of this TLB that reach `watchpoint`: they are not carried out, and fail with
    /// [`AccessError::Watchpoint`]. Instruction fetches are not stopped, nor what devices, other
    /// processors and accelerators do. On a bus that wraps addresses are those that the processor
    /// uses. Accesses to other pages cost what they do without watchpoints.
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
        let value = access(self);
        self.watchpoints.ignored = before;
        self.take_all_tags();
        value
    }
}
