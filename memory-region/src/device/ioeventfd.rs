//! Writes that do not call a device's handler: ioeventfds and coalesced ranges.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

#[cfg(target_os = "linux")]
pub use vmm_sys_util::eventfd::EventFd;

use crate::device::mmio::Endianness;

/// Linux's alone (`eventfd(2)`): no value of it can be made on this host.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub enum EventFd {}

/// An eventfd that is signalled by certain writes, instead of the device's handler: a
/// virtio queue's doorbell. With an accelerator the guest does not even exit.
///
/// The signal is not delayed: it overtakes [coalesced](crate::Transaction::set_coalescing) writes,
/// also those of the same vCPU. A thread that is woken by it and needs these writes has to flush
/// them from the accelerator first. As soon as a commit notifies listeners of it, writes may
/// signal it, also if a listener refuses the commit in the end.
///
/// On hosts other than Linux there is no [`EventFd`] to make one of.
#[derive(Clone, Debug)]
pub struct IoEventFd {
    /// Where: in a region its offset, in a view its address. In bytes.
    pub address: u64,
    /// The size of the writes that count, in bytes: 1, 2, 4 or 8; 0 for any write that
    /// starts at the address.
    pub size: u8,
    /// The value that a write must have to count, if not any. In a region it is the
    /// register's, in the byte order of the device; in a view it is that of the bytes on
    /// the bus, the first one the lowest.
    pub datamatch: Option<u64>,
    /// What is signalled.
    pub fd: Arc<EventFd>,
}

impl IoEventFd {
    fn key(&self) -> (u64, u8, Option<u64>, i32) {
        (self.address, self.size, self.datamatch, self.descriptor())
    }

    #[cfg(target_os = "linux")]
    fn descriptor(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&*self.fd)
    }

    #[cfg(not(target_os = "linux"))]
    fn descriptor(&self) -> i32 {
        match *self.fd {}
    }

    /// The bytes whose writes must not be coalesced, so that they signal the eventfd.
    pub(crate) fn bytes(&self) -> Range<u64> {
        self.address..self.address.saturating_add(u64::from(self.size.max(1)))
    }

    /// Whether a write of a device that takes it as a whole is the one. Here and there the
    /// address is an offset.
    pub(crate) fn matches(&self, address: u64, data: &[u8], order: Endianness) -> bool {
        self.address == address
            && (self.size == 0 || usize::from(self.size) == data.len())
            && self.datamatch.is_none_or(|value| value == order.value(data))
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn signal(&self, _name: &str) {
        match *self.fd {}
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn signal(&self, name: &str) {
        // Fails if the counter is full: the reader is behind by 2^64, but not asleep.
        if let Err(error) = self.fd.write(1) {
            log::debug!("The eventfd at {:#x} of \"{name}\": {error}", self.address);
        }
    }
}

impl PartialEq for IoEventFd {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for IoEventFd {}

impl PartialOrd for IoEventFd {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IoEventFd {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Addresses whose writes an accelerator may coalesce: collect, and hand to the device later in
/// their order. Reads are never coalesced. No two ranges of a view share an address, and none has
/// one of an ioeventfd.
///
/// Coalesced writes reach the device before any later access of the same vCPU that calls a
/// handler does. Stores to RAM and writes that signal an [ioeventfd](IoEventFd) may overtake
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoalescedRange {
    /// The first address.
    pub start: u64,
    /// The last address, inclusive.
    pub last: u64,
}
