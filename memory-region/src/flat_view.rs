//! What a bus sees: sections, sorted, without overlap.

use std::fmt;
use std::sync::Arc;

use ram_block::{ClientSet, RamBlock};

use crate::mmio::MmioDevice;
use crate::region::RegionId;

/// What answers in a section.
#[derive(Clone)]
pub enum SectionTarget {
    /// Memory; the section's offset is one in this block.
    Ram(Arc<RamBlock>),
    /// A device; the section's offset is what its handlers are given.
    Mmio(Arc<dyn MmioDevice>),
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
    pub(crate) readonly: bool,
    pub(crate) log: ClientSet,
    pub(crate) target: SectionTarget,
}

impl fmt::Debug for SectionTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram(block) => f.debug_tuple("Ram").field(&block.id()).finish(),
            Self::Mmio(_) => f.write_str("Mmio"),
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

    /// The memory block, unless a device answers.
    pub fn ram(&self) -> Option<&Arc<RamBlock>> {
        match &self.target {
            SectionTarget::Ram(block) => Some(block),
            SectionTarget::Mmio(_) => None,
        }
    }

    /// Whether both show the same part of the same region at the same addresses, in
    /// the same way but perhaps for the logging clients.
    pub fn same_mapping(&self, other: &Self) -> bool {
        (self.start, self.last, self.region, self.offset, self.readonly)
            == (other.start, other.last, other.region, other.offset, other.readonly)
    }

    /// Appends `next` if it goes on where this one ends.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        let goes_on = self.last.checked_add(1) == Some(next.start)
            && self.region == next.region
            && self.readonly == next.readonly
            && self.log == next.log
            && self.offset.checked_add(next.start - self.start) == Some(next.offset);
        if goes_on {
            self.last = next.last;
        }
        goes_on
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (&self.target, self.readonly) {
            (SectionTarget::Mmio(_), _) => "mmio",
            (SectionTarget::Ram(_), true) => "rom",
            (SectionTarget::Ram(_), false) => "ram",
        };
        write!(
            f,
            "{:#018x}-{:#018x} {kind} {} @{:#x}",
            self.start, self.last, self.name, self.offset
        )?;
        if self.log.is_empty() { Ok(()) } else { write!(f, " log {}", self.log) }
    }
}

/// The sections of an address space in ascending order, as one commit left them.
///
/// A value that never changes: readers keep the one they loaded.
#[derive(Clone, Debug, Default)]
pub struct FlatView {
    sections: Box<[Section]>,
}

impl FlatView {
    pub(crate) fn new(sections: Vec<Section>) -> Self {
        debug_assert!(sections.windows(2).all(|pair| pair[0].last < pair[1].start));
        Self { sections: sections.into_boxed_slice() }
    }

    /// The sections in ascending order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section that holds `address`, or where the next one starts.
    ///
    /// `Err(None)` says that nothing answers from `address` to the end.
    pub(crate) fn find(&self, address: u64) -> Result<&Section, Option<u64>> {
        let at = self.sections.partition_point(|section| section.last < address);
        match self.sections.get(at) {
            Some(section) if section.start <= address => Ok(section),
            next => Err(next.map(|section| section.start)),
        }
    }

    /// The section that answers at `address`.
    pub fn at(&self, address: u64) -> Option<&Section> {
        self.find(address).ok()
    }
}
