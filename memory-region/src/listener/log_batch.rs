//! A batch of consecutive words of a log by guest address, to be merged into blocks.
//!
//! A full log has many non-zero words in a row. They are collected and merged into a block in one
//! call, as KVM's bitmaps are. Where the log's page size is not the block's, or a batch is short,
//! its runs of pages are marked one by one.

use std::collections::BTreeMap;
use std::ops::Range;

use ram_block::{PageSize, RamBlock};

use crate::view::section::Section;

/// The most words of a batch: 1 GiB of 4 KiB pages.
const MAX_WORDS: usize = 4096;

/// The most zero words within a batch: a longer gap ends it.
const MAX_GAP: u64 = 16;

/// Runs of shorter batches are marked one by one.
const MIN_MERGED_WORDS: usize = 4;

/// Consecutive words, and the sections that they are merged into. Dropping it merges the rest, so
/// that no bit that was fetched is lost, also when the fetch fails.
pub(crate) struct LogBatch<'a> {
    /// By start.
    ram: &'a BTreeMap<u64, Section>,
    page: PageSize,
    /// The number of the page of bit 0 of the first word.
    first: u64,
    words: &'a mut Vec<u64>,
}

impl<'a> LogBatch<'a> {
    /// Words of a log with pages of `page`, for the sections in `ram`. The buffer is empty
    /// before and after.
    pub(crate) fn new(
        ram: &'a BTreeMap<u64, Section>,
        page: PageSize,
        words: &'a mut Vec<u64>,
    ) -> Self {
        Self { ram, page, first: 0, words }
    }

    /// Adds a word, bit 0 of which is page `base`.
    pub(crate) fn push(&mut self, base: u64, bits: u64) {
        if bits == 0 {
            return;
        }
        let next = self.first.saturating_add(64 * self.words.len() as u64);
        let gap = base.checked_sub(next).filter(|gap| gap % 64 == 0 && *gap <= 64 * MAX_GAP);
        match gap {
            Some(gap) if (1..MAX_WORDS).contains(&self.words.len()) => {
                self.words.extend((0..gap / 64).map(|_| 0));
            }
            _ => {
                self.flush();
                self.first = base;
            }
        }
        self.words.push(bits);
    }

    /// Merges the batch into the blocks of all sections that it overlaps.
    fn flush(&mut self) {
        let (first, page) = (self.first, self.page);
        // A source may report pages past the end of the 64-bit space: there is no RAM.
        let count = 64 * self.words.len() as u64;
        let end = first.saturating_add(count).min(page.page_of(u64::MAX) + 1);
        if first < end {
            let (start, last) =
                (first * page.bytes(), (end - 1) * page.bytes() + (page.bytes() - 1));
            let before = self.ram.range(..start).next_back();
            let sections = before.into_iter().chain(self.ram.range(start..=last));
            for (_, section) in sections.filter(|(_, section)| section.last >= start) {
                let from = page.page_of(section.start).max(first);
                let to = page.page_of(section.last).min(end - 1);
                if let Some(block) = section.ram() {
                    if !self.merge(section, block, from..to + 1) {
                        self.mark(section, block, from..to + 1);
                    }
                }
            }
        }
        self.words.clear();
    }

    /// Merges the words of `pages`, which the section has a part of, into its block; false
    /// if they are few, or if its pages are others.
    fn merge(&self, section: &Section, block: &RamBlock, pages: Range<u64>) -> bool {
        // Where the section's pages begin, both in the block and in the space.
        let bytes = self.page.bytes();
        let same =
            block.page_size() == self.page && section.start % bytes == section.offset % bytes;
        let skip = pages.start - self.first;
        let (Ok(at), shift) = (usize::try_from(skip / 64), skip % 64) else { return false };
        let words = &self.words[at..];
        if !same || words.len() < MIN_MERGED_WORDS {
            return false;
        }
        let page_at_start = self.page.page_of(section.offset);
        let into = page_at_start + (pages.start - self.page.page_of(section.start));
        let count = pages.end - pages.start;
        let merged = match shift {
            0 => block.dirty().merge(into, count, words),
            _ => {
                let above = words.iter().skip(1).chain([&0]);
                let shifted: Vec<u64> = words
                    .iter()
                    .zip(above)
                    .map(|(word, above)| word >> shift | above << (64 - shift))
                    .collect();
                block.dirty().merge(into, count, &shifted)
            }
        };
        merged.is_ok()
    }

    /// Marks the pages run by run.
    fn mark(&self, section: &Section, block: &RamBlock, pages: Range<u64>) {
        for (base, word) in (self.first..pages.end).step_by(64).zip(&*self.words) {
            let below = |page: u64| page.checked_sub(base).map_or(0, low_bits);
            let mut bits = word & below(pages.end) & !below(pages.start);
            while bits != 0 {
                let first = bits.trailing_zeros();
                let ones = (!(bits >> first)).trailing_zeros();
                bits &= u64::MAX.checked_shl(first + ones).unwrap_or(0);
                let start = (base + u64::from(first)) * self.page.bytes();
                let last = start + (u64::from(ones) * self.page.bytes() - 1);
                let (from, to) = (section.start.max(start), section.last.min(last));
                block.dirty().mark(section.offset + (from - section.start), to - from + 1);
            }
        }
    }
}

/// A mask of the lowest `count` bits.
fn low_bits(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

impl Drop for LogBatch<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::section::{Route, SectionTarget};
    use crate::{MemoryMap, RegionId};
    use proptest::prelude::*;
    use ram_block::{ClientSet, DirtyClient};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    const LEN: u64 = 8 << 20;

    fn region() -> RegionId {
        MemoryMap::new().transaction(|map| map.container("any", 1)).unwrap()
    }

    fn section(block: &Arc<RamBlock>, start: u64, offset: u64, len: u64) -> Section {
        Section {
            start,
            last: start + (len - 1),
            region: region(),
            name: "ram".into(),
            offset,
            priority: 0,
            readonly: false,
            log: ClientSet::EMPTY,
            via: Route::Direct,
            target: SectionTarget::Ram(block.clone()),
        }
    }

    /// The pages that the words name, one by one.
    fn expected(section: &Section, log: PageSize, words: &[(u64, u64)]) -> BTreeSet<u64> {
        let block = section.ram().unwrap();
        let mut pages = BTreeSet::new();
        for (base, word) in words {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let start = (base + bit) * log.bytes();
                let last = start + (log.bytes() - 1);
                let (from, to) = (section.start.max(start), section.last.min(last));
                if from <= to {
                    let offset = section.offset + (from - section.start);
                    pages.extend(block.page_size().pages_spanned(offset, to - from + 1));
                }
            }
        }
        pages
    }

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), (0..64u32).prop_map(|n| 1 << n)]
    }

    proptest! {
        #![proptest_config(
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// Wherever the sections and the words are, and whatever the log's pages.
        #[test]
        fn words_arrive_as_their_pages_one_by_one(
            log in prop_oneof![2 => Just(PageSize::host().bytes()), 1 => Just(512u64),
                1 => Just(65536)],
            unit in prop_oneof![Just(512u64), Just(4096), Just(65536)],
            high in any::<bool>(),
            windows in prop::collection::vec((0..64u64, 0..64u64, 1..64u64), 1..4),
            runs in prop::collection::vec(
                (0..40u64, prop_oneof![4 => Just(0), 1 => 0..64u64],
                    prop::collection::vec(word(), 1..12)), 1..6),
        ) {
            let log = PageSize::new(log).unwrap();
            // Near the beginning of the space, or up to its end.
            let origin = if high { u64::MAX - (256 * unit - 1) } else { 0 };
            let (mut ram, mut logs) = (BTreeMap::new(), Vec::new());
            let mut next = origin;
            for (number, (gap, offset, len)) in windows.into_iter().enumerate() {
                let block = RamBlock::anonymous(&number.to_string(), LEN).unwrap();
                logs.push(block.dirty().claim(DirtyClient::VGA).unwrap());
                let Some(start) = next.checked_add(gap * unit) else { break };
                let left = (u64::MAX - start) / unit + 1;
                let len = len.min(left);
                ram.insert(start, section(&block, start, offset * unit, len * unit));
                let Some(after) = start.checked_add(len * unit) else { break };
                next = after;
            }
            let words: Vec<(u64, u64)> = runs
                .into_iter()
                .flat_map(|(at, odd, words)| {
                    let first = log.page_of(origin) / 64 * 64 + at * 64 + odd;
                    (0u64..).zip(words).map(move |(n, word)| (first + 64 * n, word))
                })
                .filter(|(first, _)| *first <= log.page_of(u64::MAX) - 63)
                .collect();
            let mut buffer = Vec::new();
            let mut sink = LogBatch::new(&ram, log, &mut buffer);
            words.iter().for_each(|(base, bits)| sink.push(*base, *bits));
            drop(sink);
            prop_assert!(buffer.is_empty());
            for section in ram.values() {
                let dirty = section.ram().unwrap().dirty();
                let claim = logs.iter().find(|log| Arc::ptr_eq(log.dirty(), dirty)).unwrap();
                let found = claim.snapshot_and_clear(0..dirty.pages());
                let found: BTreeSet<u64> = found.unwrap().commit().pages().collect();
                prop_assert_eq!(found, expected(section, log, &words), "{:?}", section);
            }
        }
    }

    #[test]
    fn pages_past_the_end_of_the_space_are_nobodys() {
        let block = RamBlock::anonymous("top", LEN).unwrap();
        let log = block.dirty().claim(DirtyClient::VGA).unwrap();
        let page = PageSize::host();
        let start = u64::MAX - (page.bytes() - 1);
        let ram = BTreeMap::from([(start, section(&block, start, 0, page.bytes()))]);
        let mut buffer = Vec::new();
        let mut sink = LogBatch::new(&ram, page, &mut buffer);
        for base in [u64::MAX, u64::MAX - 63, page.page_of(u64::MAX) + 1] {
            (0..6).for_each(|n| sink.push(base.saturating_add(64 * n), u64::MAX));
        }
        sink.flush();
        assert!(!block.dirty().is_dirty(DirtyClient::VGA, 0));
        sink.push(page.page_of(u64::MAX), u64::MAX);
        drop(sink);
        let found = log.snapshot_and_clear(0..block.pages()).unwrap();
        assert_eq!(found.commit().pages().collect::<Vec<_>>(), [0]);
    }
}
