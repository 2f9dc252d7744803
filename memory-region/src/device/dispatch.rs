//! A device as a region shows it: accesses made to measure, and not again from within
//! themselves.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::ioeventfd::IoEventFd;
use crate::device::mmio::{AccessSizes, MmioAccess, MmioDevice};
use crate::device::reentrancy::ReentrancyGuard;
use crate::error::MapError;
use crate::fault::bus_fault::BusFault;

/// The registers of a device in a region.
pub struct DeviceRegion {
    device: Arc<dyn MmioDevice>,
    access: MmioAccess,
    pub(crate) ioeventfds: Vec<IoEventFd>,
    /// Byte ranges of the region whose writes an accelerator may coalesce, in ascending order
    /// and with a gap between any two.
    pub(crate) coalesced: Vec<Range<u64>>,
    /// Shared by all states of one region: a device's fault is told once.
    reentered: Arc<AtomicBool>,
}

/// Why an access does not arrive at its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is smaller than the device takes.
    TooSmall(usize),
    /// The device's own handler makes it.
    Reentered,
    /// The device answers so.
    Fault(BusFault),
}

impl Clone for DeviceRegion {
    fn clone(&self) -> Self {
        Self {
            device: self.device.clone(),
            access: self.access,
            ioeventfds: self.ioeventfds.clone(),
            coalesced: self.coalesced.clone(),
            reentered: self.reentered.clone(),
        }
    }
}

impl fmt::Debug for DeviceRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRegion")
            .field("access", &self.access)
            .field("ioeventfds", &self.ioeventfds)
            .field("coalesced", &self.coalesced)
            .finish_non_exhaustive()
    }
}

impl DeviceRegion {
    pub(crate) fn new(name: &str, device: Arc<dyn MmioDevice>) -> Result<Self, MapError> {
        let access = device.access();
        for sizes in [access.valid, access.implemented] {
            if !sizes.is_possible() {
                let AccessSizes { min, max, .. } = sizes;
                return Err(MapError::AccessSizes { name: name.to_owned(), min, max });
            }
        }
        let (ioeventfds, coalesced) = (Vec::new(), Vec::new());
        Ok(Self { device, access, ioeventfds, coalesced, reentered: Arc::default() })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn MmioDevice> {
        &self.device
    }

    /// Which accesses it takes.
    pub fn access(&self) -> MmioAccess {
        self.access
    }

    /// The eventfds as they are on the bus, with the region's offsets.
    pub(crate) fn ioeventfds(&self) -> impl Iterator<Item = IoEventFd> {
        let on_bus = |event: &IoEventFd, value| {
            let mut bytes = [0; 8];
            self.access.endianness.bytes(value, &mut bytes[..usize::from(event.size)]);
            u64::from_le_bytes(bytes)
        };
        self.ioeventfds.iter().map(move |event| IoEventFd {
            datamatch: event.datamatch.map(|value| on_bus(event, value)),
            ..event.clone()
        })
    }

    /// The byte ranges whose writes are coalesced: without those of ioeventfds.
    pub(crate) fn coalesced(&self) -> Vec<Range<u64>> {
        let mut ranges = self.coalesced.clone();
        for Range { start, end } in self.ioeventfds.iter().map(IoEventFd::bytes) {
            let without = |range: Range<u64>| {
                let parts = [range.start..range.end.min(start), range.start.max(end)..range.end];
                parts.into_iter().filter(|part| !part.is_empty())
            };
            ranges = ranges.into_iter().flat_map(without).collect();
        }
        ranges
    }

    /// Whether writes signal eventfds or may be coalesced.
    pub(crate) fn has_events(&self) -> bool {
        !self.ioeventfds.is_empty() || !self.coalesced.is_empty()
    }

    fn enter(&self, name: &str) -> Result<ReentrancyGuard, Refusal> {
        let inside = ReentrancyGuard::enter(Arc::as_ptr(&self.device).cast());
        if inside.is_none() {
            if self.reentered.swap(true, Ordering::Relaxed) {
                log::debug!("\"{name}\" accesses itself from within its own handler");
            } else {
                log::warn!(
                    "\"{name}\" accesses itself from within its own handler; not carried out"
                );
            }
        }
        inside.ok_or(Refusal::Reentered)
    }

    /// Reads what is at `offset`; what does not arrive reads as all ones.
    pub(crate) fn read(&self, name: &str, offset: u64, data: &mut [u8]) -> Result<(), Refusal> {
        let inside = match self.enter(name) {
            Ok(inside) => inside,
            Err(refusal) => {
                data.fill(0xff);
                return Err(refusal);
            }
        };
        let mut result = Ok(());
        let mut at = 0;
        while at < data.len() {
            let place = offset.wrapping_add(at as u64);
            let size = self.access.valid.piece(place, data.len() - at);
            let piece = &mut data[at..at + size];
            if size < self.access.valid.min {
                piece.fill(0xff);
                result = result.and(Err(Refusal::TooSmall(size)));
            } else {
                result = result.and(self.read_piece(place, piece).map_err(Refusal::Fault));
            }
            at += size;
        }
        drop(inside);
        result
    }

    /// Writes `data` at `offset`, or signals; what does not arrive is dropped.
    pub(crate) fn write(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        let order = self.access.endianness;
        let mut inside = None;
        let mut result = Ok(());
        let mut at = 0;
        while at < data.len() {
            let place = offset.wrapping_add(at as u64);
            let size = self.access.valid.piece(place, data.len() - at);
            let piece = &data[at..at + size];
            at += size;
            if size < self.access.valid.min {
                result = result.and(Err(Refusal::TooSmall(size)));
                continue;
            }
            // The handler is not called for it, so it need not be entered.
            let mut events = self.ioeventfds.iter();
            if let Some(event) = events.find(|event| event.matches(place, piece, order)) {
                event.signal(name);
                continue;
            }
            match inside.get_or_insert_with(|| self.enter(name)) {
                Ok(_) => {
                    let written = self.write_piece(place, piece);
                    result = result.and(written.map_err(Refusal::Fault));
                }
                Err(refusal) => result = result.and(Err(*refusal)),
            }
        }
        result
    }

    /// The word that the handler is called for at byte `at` of a piece that goes on for
    /// `rest` bytes: its offset, its size, and how many of its first bytes are not meant.
    fn word(&self, at: u64, rest: usize) -> (u64, usize, usize) {
        let AccessSizes { min, .. } = self.access.implemented;
        let size = self.access.implemented.piece(at, rest);
        if size >= min {
            return (at, size, 0);
        }
        let skip = usize::try_from(at % min as u64).unwrap_or(0);
        (at - skip as u64, min, skip)
    }

    /// What a word with a fault has reads as all ones; the others are read all the same.
    fn read_piece(&self, offset: u64, data: &mut [u8]) -> Result<(), BusFault> {
        let order = self.access.endianness;
        let mut result = Ok(());
        let mut done = 0;
        while done < data.len() {
            let rest = data.len() - done;
            let (at, size, skip) = self.word(offset.wrapping_add(done as u64), rest);
            let mut word = [0; 8];
            let value = self.device.try_read(at, size);
            order.bytes(value.unwrap_or(u64::MAX), &mut word[..size]);
            result = result.and(value.map(|_| ()));
            let len = rest.min(size - skip);
            data[done..done + len].copy_from_slice(&word[skip..skip + len]);
            done += len;
        }
        result
    }

    /// The words without a fault are written.
    fn write_piece(&self, offset: u64, data: &[u8]) -> Result<(), BusFault> {
        let order = self.access.endianness;
        let mut result = Ok(());
        let mut done = 0;
        while done < data.len() {
            let rest = data.len() - done;
            let (at, size, skip) = self.word(offset.wrapping_add(done as u64), rest);
            let len = rest.min(size - skip);
            let mut word = [0; 8];
            let around = if len < size { self.device.try_read(at, size) } else { Ok(0) };
            let written = around.and_then(|around| {
                order.bytes(around, &mut word[..size]);
                word[skip..skip + len].copy_from_slice(&data[done..done + len]);
                self.device.try_write(at, size, order.value(&word[..size]))
            });
            result = result.and(written);
            done += len;
        }
        result
    }
}
