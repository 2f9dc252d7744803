//! The buses that guests' accesses go to.

use std::sync::Arc;

use memory_region::{AccessError, AddressSpace};

/// The address spaces that a vCPU's exits go to.
#[derive(Clone, Debug)]
pub struct Buses {
    /// For accesses without a slot of KVM: devices, ROM writes, RAM of less than a page.
    pub memory: Arc<AddressSpace>,
    /// x86 port accesses, at the port's number.
    pub ports: Arc<AddressSpace>,
}

/// Logs a bus error, which the guest does not see.
pub(crate) fn log_bus_error(result: Result<(), AccessError>) {
    if let Err(error) = result {
        log::trace!("guest: {error}");
    }
}
