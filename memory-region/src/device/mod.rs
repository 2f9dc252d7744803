//! Devices as regions show them: the trait that they implement, the sizes and byte order of
//! their registers, what signals an eventfd instead of them, and the guard against devices that
//! access themselves.

pub(crate) mod dispatch;
pub(crate) mod ioeventfd;
pub(crate) mod iommu;
pub(crate) mod mmio;
pub(crate) mod reentrancy;
