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
    /// The first byte; upper bits that the bus does not have do not count.
    pub address: u64,
    /// How many bytes.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchpointKind,
}

impl Watchpoint {
    /// Whether it has one of the `len` bytes from `first` on, on a bus of which the bits of `mask`
    /// count, and which goes on at 0 after its end.
    pub(crate) fn has_any(self, mask: u64, first: u64, len: u64) -> bool {
        let distance = |from: u64, to: u64| to.wrapping_sub(from) & mask;
        self.len > 0
            && (distance(self.address, first) < self.len || distance(first, self.address) < len)
    }
}

impl fmt::Display for Watchpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, len, kind } = self;
        write!(f, "{kind:?} of {len} bytes at {address:#x}")
    }
}
