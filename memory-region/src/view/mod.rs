//! What a bus sees: sections, the flat view that they make, its index, and the address space
//! that publishes it; reads and writes by address, and the same as vm-memory has it.

pub(crate) mod access;
pub(crate) mod address_space;
pub(crate) mod flat_view;
pub(crate) mod generation;
#[cfg(feature = "vm-memory")]
pub(crate) mod guest_ram;
pub(crate) mod index;
pub(crate) mod main_ram;
pub(crate) mod section;
#[cfg(feature = "vm-memory")]
pub(crate) mod vm_memory;
