//! Writes that need no handler: they signal an eventfd, or are gathered.

use std::cmp::Ordering;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::device::mmio::Endianness;

/// An eventfd that is signalled by certain writes, instead of the device's handler: a
/// virtio queue's doorbell. With an accelerator the guest does not even exit.
///
/// The signal is there at once: it overtakes writes that are
/// [gathered](MapEdit::set_coalescing), also those of the same processor. Who is woken by
/// it and wants to see them asks the accelerator for them first. While a commit that brings
/// it is told to listeners, writes may signal it already, also if one of them refuses.
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
        (self.address, self.size, self.datamatch, self.fd.as_raw_fd())
    }

    /// The bytes that are not to be gathered, so that the eventfd is signalled by the writes
    /// that it is for.
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

/// Addresses of which an accelerator may gather writes, to hand them over later and in
/// their order: no read is among them, no two of a view share an address, and none has one
/// of an eventfd.
///
/// Other accesses to devices do not overtake those of the same processor that were gathered
/// before: an access that reaches a device's handler finds them handed over. Stores to RAM
/// and writes that signal an [eventfd](IoEventFd) do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoalescedRange {
    /// The first address.
    pub start: u64,
    /// The last address, inclusive.
    pub last: u64,
}
