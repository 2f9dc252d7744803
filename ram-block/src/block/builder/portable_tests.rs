//! Blocks of the kinds of memory that every host has, and what is refused by hosts without files.

use super::*;
use crate::dirty::client::DirtyClient;

const LEN: u64 = 1 << 20;

fn page() -> u64 {
    PageSize::host().bytes()
}

fn builder(max: u64) -> RamBlockBuilder {
    RamBlock::builder("ram", LEN).max_len(max)
}

fn bytes_at(ram: &RamBlock, offset: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    ram.read(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn memory_is_written_discarded_and_resized() {
    let memory = Mapping::anonymous(2 << 20).unwrap();
    // SAFETY: the mapping is the owner, and nobody else knows of it.
    let borrowed = unsafe { builder(2 * LEN).from_raw(memory.start(), Box::new(memory)) }.unwrap();
    let huge = builder(2 * LEN).huge_pages(HugePages::Transparent).anonymous().unwrap();
    for ram in [builder(2 * LEN).anonymous().unwrap(), huge, borrowed] {
        let (page, pages) = (page(), LEN / page());
        assert_eq!(ram.host_address().addr() as u64 % page, 0);
        assert_eq!(bytes_at(&ram, LEN - 4), [0; 4]);
        let log = ram.dirty().claim(DirtyClient::MIGRATION).unwrap();
        let dirty = || {
            let harvest = log.snapshot_and_clear(0..ram.pages()).unwrap();
            harvest.commit().pages().collect::<Vec<_>>()
        };
        for at in [0, 5 * page, 6 * page + 1, LEN - 4] {
            ram.write(at, b"RAM!").unwrap();
        }
        ram.write(page - 3, b"not an integer").unwrap();
        assert_eq!(dirty(), [0, 1, 5, 6, pages - 1]);
        ram.populate(0..LEN).unwrap();
        ram.discard(5 * page, page).unwrap();
        assert_eq!((bytes_at(&ram, 5 * page), bytes_at(&ram, 6 * page + 1)), ([0; 4], *b"RAM!"));
        assert_eq!(dirty(), [5]);
        ram.zero(6 * page, page).unwrap();
        assert_eq!((bytes_at(&ram, 6 * page + 1), dirty()), ([0; 4], vec![6]));
        let data: Vec<_> = ram.data_extents(page - 3..LEN).collect();
        assert!(data.iter().any(|part| part.contains(&(page - 3))));
        ram.resize(2 * LEN).unwrap();
        assert_eq!(dirty(), (pages..2 * pages).collect::<Vec<_>>());
        ram.write(2 * LEN - 4, b"more").unwrap();
        ram.resize(LEN).unwrap();
        ram.resize(2 * LEN).unwrap();
        assert_eq!(bytes_at(&ram, 2 * LEN - 4), [0; 4]);
    }
}

#[test]
fn files_are_refused_where_they_cannot_be_mapped() {
    let refused = RamBlock::memfd("ram", LEN);
    if MAPS_FILES {
        assert!(refused.unwrap().file().is_some());
        return;
    }
    let refused = refused.unwrap_err();
    let RamBlockError::Unsupported { what, host, .. } = &refused else { panic!("{refused}") };
    assert!(*what == "memory file" && !host.is_empty(), "{refused}");
    assert!(!refused.to_string().contains("  "), "{refused}");
}

#[test]
fn a_length_beyond_the_addresses_of_the_host_is_refused() {
    for len in [1 << 31, 1 << 32, (1 << 32) + page(), 1 << 63] {
        let blocks = [RamBlock::builder("ram", len), RamBlock::builder("ram", page()).max_len(len)];
        for block in blocks {
            match block.anonymous() {
                Err(RamBlockError::HostAddresses { len: found, bits, .. }) => {
                    assert_eq!((found, bits), (len, 32));
                }
                Err(RamBlockError::Map { .. }) | Ok(_) => assert_eq!(usize::BITS, 64),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
