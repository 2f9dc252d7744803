//! The buses that guests' accesses go to.

use std::sync::Arc;

use memory_region::{AccessError, AddressSpace};

/// The address spaces that a vCPU's exits go to.
#[derive(Clone, Debug)]
pub struct Buses {
    /// What KVM has no slot for: devices, ROM writes, RAM of less than a page.
    pub memory: Arc<AddressSpace>,
    /// x86 port accesses, at the port's number.
    pub ports: Arc<AddressSpace>,
}

/// Says in the log what a guest is not told.
pub(crate) fn log_bus_error(result: Result<(), AccessError>) {
    if let Err(error) = result {
        log::trace!("guest: {error}");
    }
}
