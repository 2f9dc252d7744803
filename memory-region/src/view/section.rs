//! A range of addresses at which one region answers.

use std::fmt;
use std::sync::Arc;

use ram_block::{ClientSet, RamBlock};

use crate::device::dispatch::DeviceRegion;
use crate::device::ioeventfd::{CoalescedRange, IoEventFd};
use crate::device::iommu::Iommu;
use crate::region_id::RegionId;

/// What answers in a section.
#[derive(Clone)]
#[non_exhaustive]
pub enum SectionTarget {
    /// Memory; the section's offset is one in this block.
    Ram(Arc<RamBlock>),
    /// Memory for reads, a device for writes; the section's offset is one in both.
    RomDevice {
        /// What is read.
        block: Arc<RamBlock>,
        /// What is written.
        registers: Arc<DeviceRegion>,
    },
    /// A device; the section's offset is what its handlers are given.
    Mmio(Arc<DeviceRegion>),
    /// Another address space, as this says; the section's offset is what it is asked for.
    Iommu(Arc<dyn Iommu>),
    /// Somebody outside of this map.
    Reserved,
    /// The caller, who knows the region by this token; the section's offset is what it is given.
    Trap(u64),
    /// Nobody: each byte reads as this, and writes have no effect.
    OpenBus(u8),
}

/// How a region came to a section: what moves with an alias.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Without an alias.
    Direct,
    /// By this alias last.
    Alias(RegionId),
    /// The section was put together of parts that came by different routes.
    Several,
}

/// A range of addresses at which one region answers, without a gap.
#[derive(Clone)]
pub struct Section {
    pub(crate) start: u64,
    /// Inclusive, so that the last byte of the 64-bit space can be in a section.
    pub(crate) last: u64,
    pub(crate) region: RegionId,
    pub(crate) name: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) priority: i32,
    pub(crate) readonly: bool,
    pub(crate) log: ClientSet,
    pub(crate) via: Route,
    pub(crate) target: SectionTarget,
}

impl fmt::Debug for SectionTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram(block) => f.debug_tuple("Ram").field(&block.id()).finish(),
            Self::RomDevice { block, .. } => f.debug_tuple("RomDevice").field(&block.id()).finish(),
            Self::Mmio(_) => f.write_str("Mmio"),
            Self::Iommu(_) => f.write_str("Iommu"),
            Self::Reserved => f.write_str("Reserved"),
            Self::Trap(token) => f.debug_tuple("Trap").field(token).finish(),
            Self::OpenBus(value) => f.debug_tuple("OpenBus").field(value).finish(),
        }
    }
}

impl Section {
    /// The first address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The last address, inclusive.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The size in bytes, up to 2^64.
    pub fn size(&self) -> u128 {
        u128::from(self.last - self.start) + 1
    }

    /// The region that answers.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where in the region the section starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it is memory that guests cannot write.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// The clients that log writes to it.
    pub fn log(&self) -> ClientSet {
        self.log
    }

    /// What answers.
    pub fn target(&self) -> &SectionTarget {
        &self.target
    }

    /// The memory block, unless a device answers reads.
    pub fn ram(&self) -> Option<&Arc<RamBlock>> {
        match &self.target {
            SectionTarget::Ram(block) | SectionTarget::RomDevice { block, .. } => Some(block),
            _ => None,
        }
    }

    /// The device's registers, if writes are a device's.
    pub fn device(&self) -> Option<&Arc<DeviceRegion>> {
        match &self.target {
            SectionTarget::Mmio(registers) | SectionTarget::RomDevice { registers, .. } => {
                Some(registers)
            }
            _ => None,
        }
    }

    /// What kind of region it is, in QEMU's words.
    pub(crate) fn kind(&self) -> &'static str {
        match (&self.target, self.readonly) {
            (SectionTarget::Ram(_), false) => "ram",
            (SectionTarget::Ram(_), true) => "rom",
            (SectionTarget::RomDevice { .. }, _) => "romd",
            (SectionTarget::Mmio(_), _) => "i/o",
            (SectionTarget::Iommu(_), _) => "iommu",
            (SectionTarget::Reserved, _) => "reserved",
            (SectionTarget::Trap(_), _) => "trap",
            (SectionTarget::OpenBus(_), _) => "open bus",
        }
    }

    /// Whether dropping the section drops no block, device or handler.
    pub(crate) fn holds_nothing(&self) -> bool {
        use SectionTarget::{OpenBus, Reserved, Trap};
        matches!(self.target, Reserved | Trap(_) | OpenBus(_))
    }

    /// Whether the section has the blocks, devices and handlers that `other` has.
    pub(crate) fn has_all_of(&self, other: &Self) -> bool {
        let has_block = || match (self.ram(), other.ram()) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (_, other) => other.is_none(),
        };
        let has_device = || match (self.device(), other.device()) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (_, other) => other.is_none(),
        };
        match (&self.target, &other.target) {
            (SectionTarget::Iommu(own), SectionTarget::Iommu(other)) => Arc::ptr_eq(own, other),
            (_, SectionTarget::Iommu(_)) => false,
            _ => has_block() && has_device(),
        }
    }

    /// Whether both show the same part of the same region at the same addresses, in
    /// the same way but perhaps for the logging clients.
    pub fn same_mapping(&self, other: &Self) -> bool {
        (self.start, self.last, self.region, self.offset, self.kind())
            == (other.start, other.last, other.region, other.offset, other.kind())
    }

    /// Whether `next` goes on where this one ends.
    pub(crate) fn continues_in(&self, next: &Self) -> bool {
        self.last.checked_add(1) == Some(next.start)
            && self.region == next.region
            && self.kind() == next.kind()
            && self.offset.checked_add(next.start - self.start) == Some(next.offset)
    }

    /// Appends `next` if it goes on where this one ends. One region has one log.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        let goes_on = self.continues_in(next);
        if goes_on {
            self.last = next.last;
            if self.via != next.via {
                self.via = Route::Several;
            }
        }
        goes_on
    }

    /// The address of the region's byte `offset`, if it is in this section.
    fn address_of(&self, offset: u64) -> Option<u64> {
        let from_start = offset.checked_sub(self.offset)?;
        (from_start <= self.last - self.start).then(|| self.start + from_start)
    }

    /// The eventfds that writes to it signal, at their addresses.
    pub(crate) fn ioeventfds(&self) -> impl Iterator<Item = IoEventFd> {
        let device = self.device().into_iter();
        device.flat_map(|device| device.ioeventfds()).filter_map(|event| {
            let end = event.address + u64::from(event.size.max(1) - 1);
            self.address_of(end)?;
            Some(IoEventFd { address: self.address_of(event.address)?, ..event })
        })
    }

    /// Its ranges whose writes an accelerator may coalesce, at their addresses.
    pub(crate) fn coalesced(&self) -> impl Iterator<Item = CoalescedRange> {
        let device = self.device().into_iter();
        device.flat_map(|device| device.coalesced()).filter_map(|range| {
            let first = range.start.max(self.offset);
            let last = (range.end - 1).min(self.offset.saturating_add(self.last - self.start));
            let (first, last) = (first <= last).then_some((first, last))?;
            Some(CoalescedRange { start: self.address_of(first)?, last: self.address_of(last)? })
        })
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, last, offset) = (self.start, self.last, self.offset);
        write!(f, "{start:#018x}-{last:#018x} {} {} @{offset:#x}", self.kind(), self.name)?;
        if self.log.is_empty() { Ok(()) } else { write!(f, " log {}", self.log) }
    }
}
