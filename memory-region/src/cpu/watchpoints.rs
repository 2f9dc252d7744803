//! Which loads and stores a debugger stops.

use crate::error::AccessError;
use crate::fault::watchpoint::Watchpoint;

/// The watchpoints of a TLB. Pages with one have no tag for what it stops, so that accesses to
/// others do not look here.
#[derive(Debug, Default)]
pub(super) struct Watchpoints {
    pub(super) all: Vec<Watchpoint>,
    pub(super) ignored: bool,
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
