//! The extents that are found, against the pages that were touched.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::block::builder::tests::{LEN, Temporary, each_kind};
use crate::block::error::RamBlockError;
use crate::dirty::client::DirtyClient;
use crate::page::PageSize;
use crate::page::index;
use crate::sys::data::MAX_FOUND;
use crate::sys::huge_pages::HugePages;
use crate::sys::linux::pagemap::Pagemap;

fn page() -> u64 {
    PageSize::host().bytes()
}

fn file(name: &str) -> Temporary {
    // All hole.
    let file = Temporary::new(&format!("{name}-{:?}", std::thread::current().id()), &[]);
    file.open(true).set_len(4 * LEN).unwrap();
    file
}

/// The extents, which are checked to be in order, apart and inside.
fn found(ram: &RamBlock, range: Range<u64>) -> Vec<Range<u64>> {
    check(ram.data_extents(range.clone()).collect(), &range)
}

fn check(parts: Vec<Range<u64>>, range: &Range<u64>) -> Vec<Range<u64>> {
    let mut at = range.start;
    for (n, part) in parts.iter().enumerate() {
        assert!(part.start < part.end && part.end <= range.end, "{part:?} of {range:?}");
        assert!(part.start > at || n == 0 && part.start == at, "{parts:x?}");
        at = part.end;
    }
    parts
}

/// As [`found`], of a kernel that cannot scan.
fn found_by_entries(ram: &RamBlock, range: Range<u64>) -> Vec<Range<u64>> {
    let pagemap = Pagemap::open_without_scan().unwrap();
    let mut extents = ram.data_extents(range.clone());
    extents.data = match extents.data {
        Data::Pages(_) => Data::Pages(&pagemap),
        Data::File { file, offset, .. } => Data::File { file, offset, pagemap: Some(&pagemap) },
        Data::Unknown => Data::Unknown,
    };
    check(extents.collect(), &range)
}

/// As [`found`], of a process that may not see its page map.
fn found_blindly(ram: &RamBlock, range: Range<u64>) -> Vec<Range<u64>> {
    let mut extents = ram.data_extents(range.clone());
    extents.data = match extents.data {
        Data::File { file, offset, .. } => Data::File { file, offset, pagemap: None },
        _ => Data::Unknown,
    };
    check(extents.collect(), &range)
}

fn only_part(ram: &RamBlock) -> Range<u64> {
    let parts = found(ram, 0..ram.len());
    assert_eq!(parts.len(), 1, "{parts:x?}");
    parts[0].clone()
}

/// Whether the file system of the block's file knows what mappings write.
fn file_is_asked(ram: &RamBlock) -> bool {
    matches!(ram.mapping().data(), Data::File { .. })
}

fn resident(ram: &RamBlock) -> u64 {
    let parts = found(ram, 0..ram.len());
    parts.iter().map(|part| part.end - part.start).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Everything that is not zero is found, and where pages are small, nothing else.
    #[test]
    fn what_was_written_is_found(
        touched in prop::collection::btree_set(0..LEN / 4096, 0..40),
        run in (0..LEN / 4096, 0..60u64),
        (a, b) in (0..=LEN, 0..=LEN),
        far in any::<bool>(),
    ) {
        let file = file("extents");
        let mut touched: BTreeSet<u64> = touched.into_iter().map(|n| n * 4096 / page()).collect();
        let pages = LEN / page();
        touched.extend(run.0.min(pages)..(run.0 + run.1).min(pages));
        let range = a.min(b)..a.max(b);
        for (kind, ram) in each_kind(&file) {
            for number in &touched {
                let at = number * page() + number % page();
                // By another way than the block's own mapping, where there is one.
                match ram.file().filter(|_| far) {
                    Some(file) => {
                        let base = if kind == "file" { page() } else { 0 };
                        let _ = file.write_at(&[7], base + at);
                    }
                    None => ram.write(at, &[7]).unwrap(),
                }
            }
            let expected: BTreeSet<u64> =
                touched.iter().copied().filter(|n| range.contains(&(n * page()))).collect();
            for parts in [
                found(&ram, range.clone()),
                found_by_entries(&ram, range.clone()),
                found_blindly(&ram, range.clone()),
            ] {
                let has = |at: u64| parts.iter().any(|part| part.contains(&at));
                prop_assert!(expected.iter().all(|n| has(n * page())), "{}: {:x?}", kind, parts);
                if file_is_asked(&ram) {
                    let at_edges = |n: u64| !touched.contains(&n)
                        && (has(n * page()) || has((n + 1) * page() - 1));
                    prop_assert!(!(0..pages).any(at_edges), "{}: {:x?}", kind, parts);
                }
            }
        }
    }

    /// Any bytes are made zeros, and just the pages of those that were not are marked; what
    /// has no memory gets none.
    #[test]
    fn what_is_zeroed_reads_as_zeros_and_takes_no_memory(
        touched in prop::collection::btree_set(0..LEN / 4096, 0..40),
        (start, len) in (0..LEN, prop_oneof![0..10_000u64, 0..LEN]),
    ) {
        let file = file("zero");
        let len = len.min(LEN - start);
        for (kind, ram) in each_kind(&file) {
            for number in &touched {
                ram.write(number * 4096 + number, &[7; 64]).unwrap();
            }
            let mut expected = vec![0; index(LEN)];
            ram.read(0, &mut expected).unwrap();
            // The reading has filled memory files: once more from the start.
            // Parts of a huge page of the pool stay.
            let _ = ram.discard(0, LEN);
            for number in &touched {
                ram.write(number * 4096 + number, &[7; 64]).unwrap();
            }
            let before = resident(&ram);
            let _log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
            ram.zero(start, len).unwrap();
            prop_assert_eq!(resident(&ram), before, "{}", kind);
            let zeroed = index(start)..index(start + len);
            let changed: BTreeSet<u64> = zeroed
                .clone()
                .filter(|at| expected[*at] != 0)
                .map(|at| at as u64 / page())
                .collect();
            expected[zeroed].fill(0);
            let mut found = vec![0; index(LEN)];
            ram.read(0, &mut found).unwrap();
            prop_assert!(found == expected, "{}: other bytes", kind);
            let dirty: BTreeSet<u64> = (0..ram.pages())
                .filter(|n| ram.dirty().is_dirty(DirtyClient::MIGRATION, *n))
                .collect();
            prop_assert_eq!(dirty, changed, "{}", kind);
        }
    }
}

#[test]
fn looking_and_reading_zeros_takes_no_memory() {
    let ram = RamBlock::anonymous("ram", 1 << 30).unwrap();
    assert_eq!(found(&ram, 0..1 << 30), []);
    // Pages that were only read are the kernel's page of zeros.
    ram.read(5 << 20, &mut [0; 100]).unwrap();
    let parts = found(&ram, 0..1 << 30);
    assert!(parts.len() <= 1 && parts.iter().all(|part| part.contains(&(5 << 20))), "{parts:x?}");
    let start = ram.host_address() as u64;
    let scan = Pagemap::open().unwrap().scan_regions(start..start + page(), &mut Vec::new());
    if scan.is_ok() {
        // Older kernels take a huge page of zeros for data.
        assert!(parts.iter().all(|part| part.end - part.start >= 1 << 20), "{parts:x?}");
    }
    let ram = RamBlock::memfd("ram", 1 << 30).unwrap();
    assert_eq!(found(&ram, 5..1 << 30), []);
    assert_eq!(found(&ram, 0..0), []);
    assert_eq!(found(&ram, 1 << 30..u64::MAX), []);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = ram.data_extents(5..4).next();
    assert_eq!(reversed, None);
}

#[test]
fn huge_pages_are_found() {
    let len = 64 << 20;
    for ram in [
        RamBlock::builder("ram", len).huge_pages(HugePages::Transparent).anonymous().unwrap(),
        RamBlock::builder("ram", len).huge_pages(HugePages::Pool).anonymous().unwrap(),
        RamBlock::builder("ram", len).huge_pages(HugePages::Transparent).memfd().unwrap(),
    ] {
        ram.write(33 << 20, &[1]).unwrap();
        let parts = found(&ram, 0..len);
        assert_eq!(parts.len(), 1);
        assert!(parts[0].contains(&(33 << 20)), "{parts:x?}");
        assert!(parts[0].end - parts[0].start <= 2 << 20, "{parts:x?}");
    }
}

/// More parts than are looked up at once, found by other means than the page map.
#[test]
fn many_parts_are_found_piece_by_piece() {
    let ram = RamBlock::memfd("ram", 4 * (MAX_FOUND as u64) * page()).unwrap();
    let numbers: Vec<u64> = (0..ram.pages()).step_by(2).collect();
    for number in &numbers {
        ram.file().unwrap().write_at(&[1], number * page()).unwrap();
    }
    let expected: Vec<_> = numbers.iter().map(|n| n * page()..(n + 1) * page()).collect();
    assert_eq!(found(&ram, 0..ram.len()), expected);
    assert_eq!(found_blindly(&ram, 0..ram.len()), expected);
    for number in &numbers {
        ram.write(number * page(), &[2]).unwrap();
    }
    assert_eq!(found(&ram, 0..ram.len()), expected);
    assert_eq!(found_by_entries(&ram, 0..ram.len()), expected);
}

#[test]
fn what_a_file_lost_is_no_hole() {
    let file = file("lost");
    let ram = RamBlock::builder("ram", 8 * page()).file(file.open(true), page()).unwrap();
    if !file_is_asked(&ram) {
        return;
    }
    assert_eq!(found(&ram, 0..ram.len()), []);
    file.open(true).set_len(3 * page()).unwrap();
    assert_eq!(only_part(&ram), 2 * page()..8 * page());
}

#[test]
fn pages_are_populated_and_stay_as_they_are() {
    let file = file("populate");
    for (kind, ram) in each_kind(&file) {
        let log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
        ram.write(5, b"stays").unwrap();
        log.snapshot_and_clear(0..1).unwrap().commit();
        ram.populate(3..5 * page() + 1).unwrap();
        let populated = 0..6 * page();
        let parts = found(&ram, populated.clone());
        assert_eq!(parts, [populated], "{kind}");
        let mut seen = [0; 5];
        ram.read(5, &mut seen).unwrap();
        assert_eq!(&seen, b"stays", "{kind}");
        assert!(!ram.dirty().is_dirty(DirtyClient::MIGRATION, 0), "{kind}");
        let refused = ram.populate(0..LEN + 1).unwrap_err();
        assert!(matches!(refused, RamBlockError::OutOfBounds { .. }), "{refused}");
        ram.populate(7..7).unwrap();
    }
    let ram = RamBlock::builder("ram", 8 * page()).file(file.open(true), 0).unwrap();
    file.open(true).set_len(3 * page()).unwrap();
    let refused = ram.populate(0..8 * page()).unwrap_err();
    assert!(matches!(refused, RamBlockError::Populate { .. }), "{refused}");
}

/// As on kernels that cannot populate.
#[test]
fn pages_are_populated_by_touching_them() {
    let ram: Arc<RamBlock> = RamBlock::anonymous("ram", 1 << 20).unwrap();
    ram.write(5, b"stays").unwrap();
    ram.mapping().touch(0..index(1 << 20));
    assert_eq!(only_part(&ram), 0..1 << 20);
    let mut seen = [0; 5];
    ram.read(5, &mut seen).unwrap();
    assert_eq!(&seen, b"stays");
}
