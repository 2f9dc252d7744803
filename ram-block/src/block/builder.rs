//! Choosing a block's memory.
#![allow(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::block::error::{MAX_ID_LEN, RamBlockError};
use crate::block::ram_block::RamBlock;
use crate::page::{PageSize, index};
use crate::sys::mapping::{HugePages, Mapping};

/// Chooses a block's memory.
///
/// ```
/// use ram_block::{HugePages, RamBlock};
///
/// // 16 MiB now, up to 64 MiB by `resize`; huge pages where they can be had.
/// let ram = RamBlock::builder("pc.ram", 16 << 20)
///     .max_len(64 << 20)
///     .huge_pages(HugePages::Transparent)
///     .memfd()?;
/// ram.resize(32 << 20)?;
/// assert_eq!(ram.len(), 32 << 20);
/// # Ok::<(), ram_block::RamBlockError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "the memory is chosen by the last call: anonymous, memfd, file, ..."]
pub struct RamBlockBuilder {
    id: String,
    len: u64,
    max: u64,
    huge: HugePages,
}

impl RamBlockBuilder {
    pub(crate) fn new(id: &str, len: u64) -> Self {
        Self { id: id.to_owned(), len, max: len, huge: HugePages::Default }
    }

    /// Reserves addresses and bitmaps for `max` bytes, a multiple of the page size, so that the
    /// block can [grow](RamBlock::resize). What is not used takes no memory, except for pages of
    /// the [pool](HugePages::Pool). The reserved part of a file belongs to the block, which zeroes
    /// it when it grows.
    ///
    /// In a process that locks all that it maps (`mlockall` with `MCL_FUTURE`) the kernel backs
    /// all that is reserved at once, bitmaps included, unless `MCL_ONFAULT` is given too.
    pub fn max_len(mut self, max: u64) -> Self {
        self.max = max;
        self
    }

    /// Asks for huge pages. If there are none the next best are used, down to ordinary pages:
    /// [`RamBlock::huge_pages`] returns which. Files have no pages of the [pool](HugePages::Pool),
    /// and memory of the caller keeps the pages that it has.
    pub fn huge_pages(mut self, huge: HugePages) -> Self {
        self.huge = huge;
        self
    }

    /// Private memory.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`], [`RamBlockError::MaxLength`],
    /// [`RamBlockError::Map`].
    pub fn anonymous(self) -> Result<Arc<RamBlock>, RamBlockError> {
        let huge = self.huge;
        self.finish(|max| Mapping::anonymous_of(max, huge))
    }

    /// Memory in a memory file, which another process can map through
    /// [`RamBlock::file`]. The file is sealed: nobody can change its length.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn memfd(self) -> Result<Arc<RamBlock>, RamBlockError> {
        let huge = self.huge;
        self.finish(|max| Mapping::memfd(max, huge))
    }

    /// The bytes of `file` from `offset` on, which is a multiple of the page size; writes go to the
    /// file, and others that map it share it.
    ///
    /// The file must keep its length as long as the block lives: an access past its end kills the
    /// process (SIGBUS).
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous), and [`RamBlockError::Unaligned`],
    /// [`RamBlockError::FileTooShort`], [`RamBlockError::Permission`] if the file is not
    /// open for reading and writing.
    pub fn file(self, file: File, offset: u64) -> Result<Arc<RamBlock>, RamBlockError> {
        self.check_file(&file, offset)?;
        let huge = self.huge;
        self.finish(|max| Mapping::file(file, offset, max, huge))
    }

    /// As [`file`](Self::file), but pages are copied when they are first written, so that the file
    /// stays as it is: many machines can start from one snapshot.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file); a file that is open for reading suffices.
    pub fn file_private(self, file: &File, offset: u64) -> Result<Arc<RamBlock>, RamBlockError> {
        self.check_file(file, offset)?;
        let huge = self.huge;
        self.finish(|max| Mapping::file_private(file, offset, max, huge))
    }

    /// The caller's memory from `start` on, page-aligned; `owner` is dropped when the
    /// block no longer needs it. The block cannot give this memory back to the host:
    /// a [discard](RamBlock::discard) writes zeros.
    ///
    /// # Safety
    ///
    /// As many bytes as the block has at most ([`max_len`](Self::max_len)) are mapped
    /// there, readable and writable, until `owner` is dropped. There are no Rust
    /// references to them meanwhile: all other accesses are volatile or atomic, or those of
    /// guests or other processes.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`], [`RamBlockError::MaxLength`],
    /// [`RamBlockError::Address`]; `owner` is dropped then.
    pub unsafe fn from_raw(
        self,
        start: NonNull<u8>,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<RamBlock>, RamBlockError> {
        let (address, page_size) = (start.as_ptr() as usize, PageSize::host());
        if !page_size.is_aligned(address as u64) {
            let page = page_size.bytes();
            return Err(RamBlockError::Address { id: self.id, address, page });
        }
        // SAFETY: as this function demands.
        self.finish(|max| Ok(unsafe { Mapping::from_raw(start, max, owner) }))
    }

    /// Checks that all of the block lies in `file`.
    fn check_file(&self, file: &File, offset: u64) -> Result<(), RamBlockError> {
        let page_size = PageSize::host();
        let id = || self.id.clone();
        if !page_size.is_aligned(offset) {
            let page = page_size.bytes();
            return Err(RamBlockError::Unaligned { id: id(), offset, len: self.max, page });
        }
        let found = file_len(file).map_err(|source| RamBlockError::Map {
            id: id(),
            len: self.max,
            source,
        })?;
        let needed = offset.saturating_add(self.max);
        match found {
            Some(found) if found < needed => {
                Err(RamBlockError::FileTooShort { id: id(), needed, found })
            }
            _ => Ok(()),
        }
    }

    fn finish(
        self,
        map: impl FnOnce(usize) -> io::Result<Mapping>,
    ) -> Result<Arc<RamBlock>, RamBlockError> {
        let Self { id, len, max, .. } = self;
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(RamBlockError::Id { len: id.len() });
        }
        let page_size = PageSize::host();
        if let Some(len) = [len, max].into_iter().find(|n| *n == 0 || !page_size.is_aligned(*n)) {
            return Err(RamBlockError::Length { len, page: page_size.bytes() });
        }
        if len > max {
            return Err(RamBlockError::MaxLength { id, len, max });
        }
        match map(index(max)) {
            Ok(mapping) => Ok(RamBlock::of(id, len, mapping)),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(RamBlockError::Permission { id, source })
            }
            Err(source) => Err(RamBlockError::Map { id, len: max, source }),
        }
    }
}

impl RamBlock {
    /// `len` bytes of private memory.
    ///
    /// `id` names the block in a migration stream; `len` is a non-zero multiple of
    /// the host's page size. For huge pages, room to grow, a file or memory of the
    /// caller see [`builder`](Self::builder).
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`] or [`RamBlockError::Map`].
    pub fn anonymous(id: &str, len: u64) -> Result<Arc<Self>, RamBlockError> {
        Self::builder(id, len).anonymous()
    }

    /// `len` bytes in a memory file, which another process can map through
    /// [`file`](Self::file), and which nobody can shorten.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn memfd(id: &str, len: u64) -> Result<Arc<Self>, RamBlockError> {
        Self::builder(id, len).memfd()
    }

    /// A block of `len` bytes named `id`, whose memory is chosen next.
    pub fn builder(id: &str, len: u64) -> RamBlockBuilder {
        RamBlockBuilder::new(id, len)
    }
}

/// The length of a file or a block device; `None` for other things that can be mapped.
fn file_len(mut file: &File) -> io::Result<Option<u64>> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok(Some(metadata.len()))
    } else if metadata.file_type().is_block_device() {
        // The position is shared with the caller's other descriptors of the file.
        let position = file.stream_position()?;
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(position))?;
        Ok(Some(len))
    } else {
        Ok(None)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::*;
    use crate::dirty::client::DirtyClient;

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
            let late = ram.slice(LEN - 4, 4).unwrap();
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
}
