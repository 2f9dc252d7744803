//! Which loads and stores a debugger stops.

use crate::error::AccessError;
use crate::fault::watchpoint::{Watchpoint, WatchpointKind};

/// What an access does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accesses {
    loads: bool,
    stores: bool,
}

impl Accesses {
    pub(super) const LOAD: Self = Self { loads: true, stores: false };
    pub(super) const STORE: Self = Self { loads: false, stores: true };
    pub(super) const BOTH: Self = Self { loads: true, stores: true };
}

/// The watchpoints of a TLB. Pages with one have no tag for what it stops, so that accesses to
/// others do not look here.
#[derive(Debug, Default)]
pub(super) struct Watchpoints {
    pub(super) all: Vec<Watchpoint>,
    pub(super) ignored: bool,
}

impl Watchpoints {
    /// Whether loads of the `len` bytes from `first` on, and stores there, may be stopped. What
    /// stops loads may stop an atomic access, which uses the page as a store does.
    pub(super) fn stops_in(&self, mask: u64, first: u64, len: u64) -> (bool, bool) {
        let here = self.active().filter(|watchpoint| watchpoint.has_any(mask, first, len));
        here.fold((false, false), |(loads, _), watchpoint| {
            (loads || watchpoint.kind != WatchpointKind::Write, true)
        })
    }

    fn active(&self) -> impl Iterator<Item = Watchpoint> {
        self.all.iter().copied().filter(|_| !self.ignored)
    }

    /// The first that stops an access of `len` bytes, on a bus of which the bits of `mask` count.
    ///
    /// # Errors
    ///
    /// [`AccessError::Watchpoint`].
    pub(super) fn check(
        &self,
        mask: u64,
        address: u64,
        len: usize,
        what: Accesses,
    ) -> Result<(), AccessError> {
        let mut active = self.active();
        let hit = active.find(|watchpoint| {
            let is_stopped = what.loads && watchpoint.kind != WatchpointKind::Write
                || what.stores && watchpoint.kind != WatchpointKind::Read;
            is_stopped && watchpoint.has_any(mask, address, len as u64)
        });
        hit.map_or(Ok(()), |watchpoint| Err(AccessError::Watchpoint { address, len, watchpoint }))
    }
}
