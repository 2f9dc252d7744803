//! Devices whose state travels with RAM, known here or not; it stands on nothing.
//!
//! - `device`: what a device does to be sent and received;
//! - `section_info`: a section of a stream, with its bytes if no device took it.

pub(crate) mod device;
pub(crate) mod section_info;
