//! Blocks of each kind of memory that Linux has.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::dirty::client::DirtyClient;
use crate::page::index;

pub(crate) const LEN: u64 = 1 << 20;

fn page() -> u64 {
    PageSize::host().bytes()
}

/// A file in the directory for temporary files, gone when this is dropped.
pub(crate) struct Temporary(PathBuf);

impl Temporary {
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let name = format!("ram-block-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap().write_all(content).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub(crate) fn open(&self, write: bool) -> File {
        OpenOptions::new().read(true).write(write).open(&self.0).unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Page-aligned memory of the caller, and whether it is still needed.
fn borrowed(max: u64) -> Arc<RamBlock> {
    let memory = Mapping::anonymous(index(max)).unwrap();
    // SAFETY: the mapping is the owner, and nobody else knows of it.
    unsafe { builder(max).from_raw(memory.start(), Box::new(memory)) }.unwrap()
}

fn builder(max: u64) -> RamBlockBuilder {
    RamBlock::builder("ram", LEN).max_len(max)
}

/// One block of each kind, with room for as much again.
pub(crate) fn each_kind(file: &Temporary) -> [(&'static str, Arc<RamBlock>); 7] {
    let max = 2 * LEN;
    [
        ("anonymous", builder(max).anonymous().unwrap()),
        ("memfd", builder(max).memfd().unwrap()),
        ("file", builder(max).file(file.open(true), page()).unwrap()),
        ("file copy", builder(max).file_private(&file.open(false), page()).unwrap()),
        ("borrowed", borrowed(max)),
        ("huge", builder(max).huge_pages(HugePages::Transparent).anonymous().unwrap()),
        ("pool", builder(max).huge_pages(HugePages::Pool).memfd().unwrap()),
    ]
}

fn bytes_at(ram: &RamBlock, offset: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    ram.read(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_kind_is_written_discarded_and_resized_alike() {
    let file = Temporary::new("kinds", &vec![b'f'; index(2 * LEN + page())]);
    for (kind, ram) in each_kind(&file) {
        let (page, pages) = (page(), LEN / page());
        let client = DirtyClient::MIGRATION;
        ram.discard(0, LEN).unwrap();
        let late = ram.bytes(LEN - 4, 4).unwrap();
        let log = ram.dirty().claim(client).unwrap();
        let dirty = || {
            let found: Vec<_> =
                (0..ram.pages()).filter(|page| ram.dirty().is_dirty(client, *page)).collect();
            log.snapshot_and_clear(0..ram.pages()).unwrap().commit();
            found
        };
        assert_eq!((ram.len(), ram.max_len()), (LEN, 2 * LEN), "{kind}");
        for at in [0, 5 * page, 6 * page, LEN - 4] {
            ram.write(at, b"RAM!").unwrap();
        }
        assert_eq!(dirty(), [0, 5, 6, pages - 1], "{kind}");

        ram.discard(5 * page, page).unwrap();
        assert_eq!(bytes_at(&ram, 5 * page), [0; 4], "{kind}");
        assert_eq!(bytes_at(&ram, 6 * page), *b"RAM!", "{kind}");
        assert_eq!(dirty(), [5], "{kind}");
        let unaligned = ram.discard(5 * page + 1, page).unwrap_err();
        assert!(matches!(unaligned, RamBlockError::Unaligned { .. }), "{kind}: {unaligned}");
        let outside = ram.discard(LEN, page).unwrap_err();
        assert!(matches!(outside, RamBlockError::OutOfBounds { .. }), "{kind}: {outside}");

        let epoch = ram.dirty().epoch(client);
        ram.resize(2 * LEN).unwrap();
        assert_eq!(dirty(), (pages..2 * pages).collect::<Vec<_>>(), "{kind}");
        assert_eq!(bytes_at(&ram, LEN - 4), *b"RAM!", "{kind}");
        ram.write(2 * LEN - 4, b"more").unwrap();
        ram.resize(LEN / 2).unwrap();
        assert_eq!(dirty(), [0; 0], "{kind}");
        assert!(ram.write(LEN / 2, &[1]).is_err(), "{kind}: past the end");
        late.copy_from(b"late");
        ram.resize(2 * LEN).unwrap();
        assert_eq!(bytes_at(&ram, LEN - 4), [0; 4], "{kind}");
        assert_eq!(bytes_at(&ram, 2 * LEN - 4), [0; 4], "{kind}");
        assert_eq!(ram.dirty().epoch(client), epoch + 6, "{kind}");
        let refused = ram.resize(2 * LEN + page).unwrap_err();
        assert!(matches!(refused, RamBlockError::MaxLength { .. }), "{kind}: {refused}");
        for bad in [0, page + 1] {
            let refused = ram.resize(bad).unwrap_err();
            assert!(matches!(refused, RamBlockError::Length { .. }), "{kind}: {refused}");
        }
    }
}

#[test]
fn a_file_is_written_and_a_copy_leaves_it_alone() {
    let file = Temporary::new("file", &vec![b'f'; index(LEN + page())]);
    let shared = RamBlock::builder("ram", LEN).file(file.open(true), page()).unwrap();
    let copy = RamBlock::builder("ram", LEN).file_private(&file.open(false), page()).unwrap();
    shared.write(8, b"shared").unwrap();
    copy.write(page(), b"copy").unwrap();
    let mut found = [0; 6];
    file.open(false).read_exact_at(&mut found, page() + 8).unwrap();
    assert_eq!(&found, b"shared");
    file.open(false).read_exact_at(&mut found, 2 * page()).unwrap();
    assert_eq!(&found, b"ffffff");
    assert!(shared.file().is_some() && copy.file().is_none());
    copy.discard(page(), page()).unwrap();
    assert_eq!(bytes_at(&copy, page()), [0; 4], "not the file's bytes");
}

#[test]
fn files_that_do_not_do_are_refused_by_what_is_wrong() {
    let file = Temporary::new("short", &vec![0; index(LEN)]);
    let block = || RamBlock::builder("ram", LEN);
    let short = block().file(file.open(true), page()).unwrap_err();
    assert_eq!(
        short.to_string(),
        format!("Block \"ram\" needs {} bytes of its file, which has {LEN}", LEN + page())
    );
    let short = block().max_len(2 * LEN).file_private(&file.open(true), 0).unwrap_err();
    assert!(matches!(short, RamBlockError::FileTooShort { .. }), "{short}");
    let unaligned = block().file(file.open(true), 1).unwrap_err();
    assert!(matches!(unaligned, RamBlockError::Unaligned { offset: 1, .. }), "{unaligned}");
    let huge = block().file(file.open(true), u64::MAX - page() + 1).unwrap_err();
    assert!(matches!(huge, RamBlockError::FileTooShort { .. }), "{huge}");
    let read_only = block().file(file.open(false), 0).unwrap_err();
    assert!(matches!(read_only, RamBlockError::Permission { .. }), "{read_only}");
}

#[test]
fn memory_of_the_caller_is_aligned_and_its_owner_dropped_with_the_block() {
    let memory = Mapping::anonymous(index(LEN)).unwrap();
    let start = memory.start();
    let owner = Arc::new(memory);
    let block = || RamBlock::builder("ram", LEN);
    let odd = NonNull::new(start.as_ptr().wrapping_add(8)).unwrap();
    // SAFETY: not aligned, so refused before it is used.
    let refused = unsafe { block().from_raw(odd, Box::new(owner.clone())) };
    assert!(matches!(refused, Err(RamBlockError::Address { .. })), "{refused:?}");
    // SAFETY: the mapping lives as long as its owner.
    let ram = unsafe { block().from_raw(start, Box::new(owner.clone())) }.unwrap();
    assert_eq!(ram.host_address(), start.as_ptr());
    ram.write(0, b"mine").unwrap();
    assert_eq!(Arc::strong_count(&owner), 2);
    drop(ram);
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn huge_pages_are_aligned_and_fall_back_to_what_there_is() {
    for huge in [HugePages::Transparent, HugePages::Pool] {
        let len = 6 << 20;
        for ram in [
            RamBlock::builder("ram", len).huge_pages(huge).anonymous().unwrap(),
            RamBlock::builder("ram", len).huge_pages(huge).memfd().unwrap(),
        ] {
            assert_eq!(ram.host_address() as usize % (2 << 20), 0, "{:?}", ram.huge_pages());
            ram.write(len - 4, b"last").unwrap();
            assert_eq!(bytes_at(&ram, len - 4), *b"last");
        }
    }
    // No multiple of a huge page is in no pool.
    let odd = RamBlock::builder("ram", page()).huge_pages(HugePages::Pool).memfd().unwrap();
    assert_ne!(odd.huge_pages(), HugePages::Pool);
}

#[test]
fn nobody_shortens_a_memory_file() {
    let ram = RamBlock::memfd("ram", LEN).unwrap();
    assert!(ram.file().unwrap().set_len(page()).is_err());
    assert!(ram.file().unwrap().set_len(2 * LEN).is_err());
}

#[test]
fn lengths_fit_what_is_reserved() {
    let block = |max| RamBlock::builder("ram", LEN).max_len(max).anonymous();
    let refused = block(LEN - page()).unwrap_err();
    assert!(matches!(refused, RamBlockError::MaxLength { .. }), "{refused}");
    let refused = block(LEN + 1).unwrap_err();
    assert!(matches!(refused, RamBlockError::Length { .. }), "{refused}");
}
