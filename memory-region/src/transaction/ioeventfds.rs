//! The edits of a transaction: ioeventfds and coalesced ranges of devices.

use std::ops::Range;
use std::sync::Arc;

use crate::device::dispatch::DeviceRegion;
use crate::device::ioeventfd::IoEventFd;
use crate::error::MapError;
use crate::region_id::RegionId;
use crate::transaction::regions::Transaction;

impl Transaction<'_> {
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
        registers.ioeventfds.push(event);
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
        let before = registers.ioeventfds.len();
        registers.ioeventfds.retain(|other| other != event);
        Ok(registers.ioeventfds.len() < before)
    }

    /// Sets the byte ranges of a device whose writes accelerators may coalesce (QEMU:
    /// `memory_region_add_coalescing`; KVM: KVM_REGISTER_COALESCED_MMIO): the device gets them
    /// later, in their order, and before its next other access. For registers of which a guest
    /// writes many before it needs an effect. Replaces the former ranges; ranges that overlap or
    /// touch become one.
    ///
    /// Writes to the bytes of an ioeventfd are never coalesced.
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

    fn registers(&mut self, id: RegionId) -> Result<(String, &mut DeviceRegion), MapError> {
        let region = self.topology.get_mut(id)?;
        let name = region.name.to_string();
        match region.registers_mut() {
            Some(registers) => Ok((name, Arc::make_mut(registers))),
            None => Err(MapError::NoDevice { name }),
        }
    }
}

impl IoEventFd {
    /// Whether there is a write that both want. KVM has room for one of them.
    fn meets(&self, other: &Self) -> bool {
        let any_size = self.size == 0 || other.size == 0;
        let any_value = self.datamatch.is_none() || other.datamatch.is_none();
        let same_value = any_value || self.datamatch == other.datamatch;
        self.address == other.address && (any_size || self.size == other.size && same_value)
    }

    /// Why no write to `registers` could signal it, or it alone.
    fn fault(&self, registers: &DeviceRegion, region_size: u128) -> Option<&'static str> {
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
        } else if registers.ioeventfds.iter().any(|other| other.meets(self)) {
            Some("there is one already for some of these writes")
        } else {
            None
        }
    }
}
