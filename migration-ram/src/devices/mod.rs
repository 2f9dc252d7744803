//! Devices whose state is in the stream, registered here or not. Uses no other module.
//!
//! - `device`: the trait of a device that is saved and restored;
//! - `value`: one whose state is a value that serde knows;
//! - `section_info`: a section of a stream, with its bytes if no device restored it.

pub(crate) mod device;
pub(crate) mod section_info;
pub(crate) mod value;
