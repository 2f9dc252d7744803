//! Who follows an address space: what one commit changed in its view, how listeners are told,
//! and writers of guest memory that keep a log of their own.

pub(crate) mod change;
pub(crate) mod diff;
pub(crate) mod external_log;
pub(crate) mod log_batch;
pub(crate) mod notify;
#[cfg(all(feature = "vm-memory", target_os = "linux"))]
pub(crate) mod vhost_log;
