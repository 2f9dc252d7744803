//! Writes that need no handler: they signal an eventfd, or are gathered.

use std::cmp::Ordering;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::edit::MapEdit;
use crate::error::MapError;
use crate::mmio::Endianness;
use crate::region::RegionId;
use crate::registers::Registers;

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

    /// Whether there is a write that both want. KVM has room for one of them.
    fn meets(&self, other: &Self) -> bool {
        let any_size = self.size == 0 || other.size == 0;
        let any_value = self.datamatch.is_none() || other.datamatch.is_none();
        let same_value = any_value || self.datamatch == other.datamatch;
        self.address == other.address && (any_size || self.size == other.size && same_value)
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

    /// Why no write to `registers` could signal it, or it alone.
    fn fault(&self, registers: &Registers, region_size: u128) -> Option<&'static str> {
        let size = usize::from(self.size);
        let bits = u32::from(self.size) * 8;
        let valid = registers.access().valid;
        if !matches!(size, 0 | 1 | 2 | 4 | 8) {
            Some("no write has this size")
        } else if u128::from(self.address) + u128::from(self.size.max(1)) > region_size {
            Some("it lies outside the region")
        } else if size == 0 && self.datamatch.is_some() {
            Some("writes of any size have no one value")
        } else if self.datamatch.is_some_and(|value| value.checked_shr(bits).unwrap_or(0) != 0) {
            Some("no write of this size has the value")
        } else if size != 0 && (size < valid.min || valid.piece(self.address, size) != size) {
            Some("the device takes no such write")
        } else if registers.event_fds.iter().any(|other| other.meets(self)) {
            Some("there is one already for some of these writes")
        } else {
            None
        }
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

impl MapEdit<'_> {
    /// Lets certain writes to a device signal an eventfd instead of its handler, from
    /// the bus and from guests.
    ///
    /// What an access brings is looked at piece by piece, as the device takes it
    /// ([`MmioAccess::valid`](crate::MmioAccess::valid)). With an accelerator a guest's
    /// write that starts at the address of an eventfd for any size is one piece.
    ///
    /// # Errors
    ///
    /// [`MapError::NoDevice`], [`MapError::UnknownRegion`], or [`MapError::EventFd`] if no
    /// write is such: the size is none, or one that the device does not take there, the
    /// place is outside the region, the value too large, or asked for without a size; or if
    /// there is an eventfd already for one of the writes.
    pub fn add_ioeventfd(&mut self, region: RegionId, event: IoEventFd) -> Result<(), MapError> {
        let region_size = self.topology.get(region)?.size;
        let (name, registers) = self.registers(region)?;
        if let Some(reason) = event.fault(registers, region_size) {
            let IoEventFd { address, size, .. } = event;
            return Err(MapError::EventFd { name, address, size, reason });
        }
        registers.event_fds.push(event);
        Ok(())
    }

    /// Takes an eventfd away again; returns whether it was there.
    ///
    /// # Errors
    ///
    /// [`MapError::NoDevice`], [`MapError::UnknownRegion`].
    pub fn remove_ioeventfd(
        &mut self,
        region: RegionId,
        event: &IoEventFd,
    ) -> Result<bool, MapError> {
        let (_, registers) = self.registers(region)?;
        let before = registers.event_fds.len();
        registers.event_fds.retain(|other| other != event);
        Ok(registers.event_fds.len() < before)
    }

    /// Lets accelerators gather the writes to these byte ranges of a device, and only
    /// to these, before they hand them over: registers of which a guest writes many
    /// before it wants an effect. Ranges that overlap or touch are one. No range ends it.
    ///
    /// What is at an eventfd's bytes is not gathered, whichever of them comes first.
    ///
    /// # Errors
    ///
    /// [`MapError::NoDevice`], [`MapError::UnknownRegion`], or [`MapError::Coalescing`]
    /// if a range is empty or outside the region.
    pub fn set_coalescing(
        &mut self,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), MapError> {
        let size = self.topology.get(region)?.size;
        let (name, registers) = self.registers(region)?;
        for range in ranges {
            if range.is_empty() || u128::from(range.end) > size {
                let Range { start, end } = *range;
                return Err(MapError::Coalescing { name, start, end, size });
            }
        }
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable_by_key(|range| range.start);
        registers.coalesced.clear();
        for range in sorted {
            match registers.coalesced.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => registers.coalesced.push(range),
            }
        }
        Ok(())
    }

    fn registers(&mut self, id: RegionId) -> Result<(String, &mut Registers), MapError> {
        let region = self.topology.get_mut(id)?;
        let name = region.name.to_string();
        match region.registers_mut() {
            Some(registers) => Ok((name, Arc::make_mut(registers))),
            None => Err(MapError::NoDevice { name }),
        }
    }
}
