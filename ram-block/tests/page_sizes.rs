//! Blocks whose pages are not the host's: their bytes, and which pages are dirty, exactly.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ram_block::{DirtyClaim, DirtyClient, PageSize, RamBlock, RamBlockError, RamPage};

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Store(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64),
    Resize(u64),
    Harvest,
}

fn step() -> impl Strategy<Value = Step> {
    let part = || (any::<u64>(), 0..9000u64);
    prop_oneof![
        4 => (any::<u64>(), prop::collection::vec(any::<u8>(), 1..300))
            .prop_map(|(at, bytes)| Step::Write(at, bytes)),
        4 => (any::<u64>(), any::<u64>()).prop_map(|(at, value)| Step::Store(at, value)),
        2 => part().prop_map(|(at, len)| Step::Discard(at, len)),
        2 => part().prop_map(|(at, len)| Step::Zero(at, len)),
        1 => any::<u64>().prop_map(Step::Resize),
        2 => Just(Step::Harvest),
    ]
}

fn taken(log: &DirtyClaim) -> BTreeSet<u64> {
    let harvest = log.snapshot_and_clear(0..log.dirty().pages()).unwrap();
    let pages = harvest.pages().collect();
    harvest.commit();
    pages
}

proptest! {
    #[test]
    fn blocks_of_any_page_size_are_a_list_of_bytes(
        shift in 6..15u32,
        pages in 1..70u64,
        more in 0..20u64,
        memfd in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let size = PageSize::new(1 << shift).unwrap();
        let (max, room) = ((pages + more) * size.bytes(), pages + more);
        let builder = RamBlock::builder("ram", pages * size.bytes()).max_len(max).page_size(size);
        let can_map_files = cfg!(target_os = "linux");
        let ram = if memfd && can_map_files { builder.memfd() } else { builder.anonymous() };
        let ram = ram.unwrap();
        prop_assert_eq!((ram.len(), ram.max_len()), (pages * size.bytes(), max));
        prop_assert_eq!((ram.page_size(), ram.pages()), (size, pages));
        let log = ram.dirty().claim(DirtyClient::VGA).unwrap();
        let mut model = vec![0u8; usize::try_from(ram.len()).unwrap()];
        let mut dirty = BTreeSet::new();
        let mut memory = vec![0; model.len()];
        for step in steps {
            let len = model.len() as u64;
            let index = |at: u64| usize::try_from(at).unwrap();
            let mut touched = BTreeSet::new();
            let mut mark = |from: u64, count: u64| {
                if count > 0 {
                    touched.extend(from / size.bytes()..=(from + count - 1) / size.bytes());
                }
            };
            match step {
                Step::Write(at, bytes) => {
                    let at = at % len;
                    let bytes = &bytes[..bytes.len().min(index(len - at))];
                    ram.write(at, bytes).unwrap();
                    model[index(at)..index(at) + bytes.len()].copy_from_slice(bytes);
                    mark(at, bytes.len() as u64);
                }
                Step::Store(at, value) => {
                    // Pages of a TLB that are larger than the block's, where it has such.
                    let at = (at % len) & !7;
                    if let Ok(mut page) = RamPage::<11>::new(&ram, at & !2047) {
                        page.store(index(at & 2047), value);
                        page.store(index(at & 2047), value.to_le());
                        prop_assert_eq!(page.load::<u64>(index(at & 2047)), value.to_le());
                    } else {
                        prop_assert!((at & !2047) + 2048 > len);
                        ram.write(at, &value.to_le_bytes()).unwrap();
                    }
                    model[index(at)..index(at) + 8].copy_from_slice(&value.to_le_bytes());
                    mark(at, 8);
                }
                Step::Discard(at, count) => {
                    let at = at % len / size.bytes() * size.bytes();
                    let count = count.min(len - at) / size.bytes() * size.bytes();
                    ram.discard(at, count).unwrap();
                    model[index(at)..index(at + count)].fill(0);
                    mark(at, count);
                }
                Step::Zero(at, count) => {
                    let at = at % len;
                    let count = count.min(len - at);
                    prop_assert_eq!(taken(&log), dirty.clone());
                    dirty.clear();
                    let range = index(at)..index(at + count);
                    let written: BTreeSet<u64> = range.clone()
                        .filter(|at| model[*at] != 0)
                        .map(|at| at as u64 / size.bytes())
                        .collect();
                    ram.zero(at, count).unwrap();
                    let found = taken(&log);
                    prop_assert!(found.is_superset(&written), "{:?} of {:?}", found, written);
                    let within = size.pages_spanned(at, count);
                    prop_assert!(found.iter().all(|page| within.contains(page)));
                    model[range].fill(0);
                }
                Step::Resize(to) => {
                    let to = 1 + to % room;
                    ram.resize(to * size.bytes()).unwrap();
                    model.resize(index(to * size.bytes()), 0);
                    memory.resize(model.len(), 0);
                    dirty.retain(|page| *page < to);
                    mark(len, (to * size.bytes()).saturating_sub(len));
                }
                Step::Harvest => {
                    prop_assert_eq!(taken(&log), dirty.clone());
                    dirty.clear();
                }
            }
            dirty.extend(touched);
            ram.read(0, &mut memory).unwrap();
            prop_assert!(memory == model, "bytes differ");
        }
    }
}

/// A watch over code, and a mark, of 64 bytes: what lies beside is left alone.
#[test]
fn code_is_watched_by_the_line() {
    let size = PageSize::new(64).unwrap();
    let ram = RamBlock::builder("ram", 2048).page_size(size).anonymous().unwrap();
    let (report, reported) = std::sync::mpsc::channel();
    let watch = ram.dirty().watch_code(move |page| report.send(page).unwrap()).unwrap();
    let _token = watch.watch(2..4).unwrap();
    let mut page = RamPage::<11>::new(&ram, 0).unwrap();
    page.store(120, 1u64);
    page.store(256, 1u64);
    assert_eq!(reported.try_iter().collect::<Vec<_>>(), [0u64; 0]);
    page.store(128, 1u8);
    page.store(130, 1u8);
    ram.write(255, &[1, 2]).unwrap();
    assert_eq!(reported.try_iter().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn lengths_are_whole_pages() {
    for bytes in [0, 63, 96, 1 << 31] {
        assert!(PageSize::new(bytes).is_err());
    }
    let size = PageSize::new(64).unwrap();
    for len in [0, 1, 63, 65, 2048 + 32] {
        let refused = RamBlock::builder("ram", len).page_size(size).anonymous().unwrap_err();
        assert!(matches!(refused, RamBlockError::Length { page: 64, .. }), "{refused}");
    }
    let large = PageSize::new(1 << 21).unwrap();
    assert!(RamBlock::builder("ram", 1 << 20).page_size(large).anonymous().is_err());
    let ram = RamBlock::builder("ram", 1 << 21).page_size(large).anonymous().unwrap();
    assert_eq!(ram.pages(), 1);
    // Parts of a page of the host.
    let ram = RamBlock::builder("ram", 160 * 64).page_size(size).anonymous().unwrap();
    ram.populate(0..ram.len()).unwrap();
    ram.write(100 * 64 + 1, &[7]).unwrap();
    let part = PageSize::new(128).unwrap();
    assert_eq!(ram.zero_mask(98 * 64, part, 4).unwrap(), 0b1101);
    let data: Vec<_> = ram.data_extents(0..ram.len()).collect();
    assert!(data.iter().any(|part| part.contains(&(100 * 64 + 1))));
    assert!(data.iter().all(|part| part.end <= ram.len()));
}
