//! The section that most accesses are to.

use std::sync::Arc;

use ram_block::RamBlock;

use crate::view::section::{Section, SectionTarget};

/// The largest section of RAM of a view, found by two comparisons instead of a search: most
/// accesses of a machine are to it. ROM is never it, so that loads and stores have the same check.
#[derive(Clone, Debug)]
pub(crate) struct MainRam {
    start: u64,
    /// The last address less the first one, so that 2^64 bytes have a number too.
    span: u64,
    /// Where in the block it starts.
    offset: u64,
    block: Arc<RamBlock>,
}

impl MainRam {
    pub(crate) fn of(sections: &[Section]) -> Option<Self> {
        let ram = sections.iter().filter_map(|section| match &section.target {
            SectionTarget::Ram(block) if !section.readonly => Some((section, block)),
            _ => None,
        });
        let (section, block) = ram.max_by_key(|(section, _)| section.last - section.start)?;
        let Section { start, last, offset, .. } = *section;
        Some(Self { start, span: last - start, offset, block: block.clone() })
    }

    /// Makes it what its section is, which shows another part of the same block now.
    pub(crate) fn follow(&mut self, section: &Section) {
        if section.start == self.start {
            self.offset = section.offset;
        }
    }

    /// The block, and the offset in it, if all of an access of `len` bytes is here.
    #[inline(always)]
    pub(crate) fn holding(&self, address: u64, len: usize) -> Option<(&RamBlock, u64)> {
        let from_start = address.wrapping_sub(self.start);
        // None of an access of no bytes.
        let last_place = self.span.checked_sub((len as u64).wrapping_sub(1))?;
        (from_start <= last_place).then(|| (&*self.block, self.offset + from_start))
    }
}
