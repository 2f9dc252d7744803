//! Bytes of which a debugger wants to see accesses.

use std::fmt;

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
    pub(crate) fn stops(self) -> (bool, bool) {
        (self.kind != WatchpointKind::Write, self.kind != WatchpointKind::Read)
    }

    /// Whether it has a byte from `first` to `last`.
    pub(crate) fn has_any(self, first: u64, last: u64) -> bool {
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
