//! Calls of KVM, and the memory that KVM shares.
//!
//! - `ioctl`: the calls that pass memory, and what is read from a vCPU's shared page
//! - `mapping`: what KVM shares through a vCPU's descriptor
//! - `dirty_gfn`: an entry of a dirty ring
//! - `vm_ioctls`: the calls that leave slots, logs and vCPUs alone, for the machine's owner
//!
//! Built on `error` alone. It makes no decisions.

pub(crate) mod dirty_gfn;
pub(crate) mod ioctl;
pub(crate) mod mapping;
pub(crate) mod vm_ioctls;
