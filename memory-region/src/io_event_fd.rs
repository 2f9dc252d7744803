//! Writes that need no handler: they signal an eventfd, or are gathered.

use std::cmp::Ordering;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::edit::MapEdit;
use crate::error::MapError;
use crate::region::RegionId;
use crate::registers::Registers;

/// An eventfd that is signalled by certain writes, instead of the device's handler: a
/// virtio queue's doorbell. With an accelerator the guest does not even exit.
#[derive(Clone, Debug)]
pub struct IoEventFd {
    /// Where: in a region its offset, in a view its address. In bytes.
    pub address: u64,
    /// The size of the writes that count, in bytes: 1, 2, 4 or 8; 0 for any.
    pub size: u8,
    /// The value that a write must have to count, if not any.
    pub datamatch: Option<u64>,
    /// What is signalled.
    pub fd: Arc<EventFd>,
}

impl IoEventFd {
    fn key(&self) -> (u64, u8, Option<u64>, i32) {
        (self.address, self.size, self.datamatch, self.fd.as_raw_fd())
    }

    /// Whether both want the same write, whatever they signal.
    fn same_write(&self, other: &Self) -> bool {
        (self.address, self.size, self.datamatch) == (other.address, other.size, other.datamatch)
    }

    /// Whether a write on the bus is the one.
    pub(crate) fn matches(&self, address: u64, data: &[u8]) -> bool {
        if self.address != address || (self.size != 0 && usize::from(self.size) != data.len()) {
            return false;
        }
        self.datamatch.is_none_or(|value| {
            let bytes = value.to_le_bytes();
            data.len() <= 8 && bytes[..data.len()] == *data
        })
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
/// their order: no read is among them, and no write elsewhere overtakes them on the
/// same processor.
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
    /// # Errors
    ///
    /// [`MapError::NoDevice`], [`MapError::UnknownRegion`], or [`MapError::EventFd`] if
    /// the size is none, the place is outside the region, or the write has one already.
    pub fn add_ioeventfd(&mut self, region: RegionId, event: IoEventFd) -> Result<(), MapError> {
        let size = self.topology.get(region)?.size;
        let (name, registers) = self.registers(region)?;
        let reason = if !matches!(event.size, 0 | 1 | 2 | 4 | 8) {
            Some("no write has this size")
        } else if u128::from(event.address) + u128::from(event.size.max(1)) > size {
            Some("it lies outside the region")
        } else if registers.event_fds.iter().any(|other| other.same_write(&event)) {
            Some("there is one already")
        } else {
            None
        };
        if let Some(reason) = reason {
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
    /// before it wants an effect. No range ends it.
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
        registers.coalesced = ranges.to_vec();
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
