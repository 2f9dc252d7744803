//! The buses that guests' accesses go to, and writes for which a guest need not exit.
//!
//! - `buses`: the address spaces of a vCPU
//! - `io_events`: eventfds and gathered ranges, as KVM is told of them
//! - `coalesced_ring`: the ring in which KVM gathers writes
//! - `coalesced_queue`: gathered writes on their way to their devices
//!
//! Stands on `sys`.

pub(crate) mod buses;
pub(crate) mod coalesced_queue;
pub(crate) mod coalesced_ring;
pub(crate) mod io_events;
