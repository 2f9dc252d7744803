//! The buses that guests' accesses go to, and writes for which a guest need not exit.
//!
//! - `buses`: the address spaces of a vCPU
//! - `io_events`: ioeventfds and coalesced zones, as they are registered with KVM
//! - `coalesced_ring`: KVM's ring of coalesced writes
//! - `coalesced_queue`: coalesced writes between the ring and their devices
//!
//! Built on `sys`.

pub(crate) mod buses;
pub(crate) mod coalesced_queue;
pub(crate) mod coalesced_ring;
pub(crate) mod io_events;
