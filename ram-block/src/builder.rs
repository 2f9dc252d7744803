//! Choosing a block's memory.
#![allow(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::backing::{HugePages, Mapping};
use crate::block::{MAX_ID_LEN, RamBlock};
use crate::error::RamBlockError;
use crate::page::{PageSize, index};

/// What a block's memory shall be.
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

    /// Reserves addresses and bitmaps for `max` bytes, a multiple of the page size, so
    /// that the block can [grow](RamBlock::resize). What is not used takes no memory.
    pub fn max_len(mut self, max: u64) -> Self {
        self.max = max;
        self
    }

    /// Asks for huge pages. Where they cannot be had the next best is taken, down to
    /// ordinary pages: [`RamBlock::huge_pages`] says what it was. Files have no pages of
    /// the [pool](HugePages::Pool), and memory of the caller is as it is.
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

    /// The bytes of `file` from `offset` on, which is a multiple of the page size; what
    /// is written is in the file, and others who map it share it.
    ///
    /// The file must keep its length as long as the block lives: an access past its end
    /// ends the program.
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

    /// As [`file`](Self::file), but pages are copied when they are first written, so that
    /// the file stays as it is: the start of many machines from one snapshot.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file); a file that is open for reading suffices.
    pub fn file_copy(self, file: &File, offset: u64) -> Result<Arc<RamBlock>, RamBlockError> {
        self.check_file(file, offset)?;
        let huge = self.huge;
        self.finish(|max| Mapping::file_copy(file, offset, max, huge))
    }

    /// The caller's memory from `start` on, page-aligned; `owner` is dropped when the
    /// block no longer needs it. The block cannot give this memory back to the host:
    /// a [discard](RamBlock::discard) writes zeros.
    ///
    /// # Safety
    ///
    /// As many bytes as the block has at most ([`max_len`](Self::max_len)) are mapped
    /// there, readable and writable, until `owner` is dropped. Nobody has Rust
    /// references to them meanwhile: others access them by volatile or atomic accesses
    /// or are guests or other processes.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`], [`RamBlockError::MaxLength`],
    /// [`RamBlockError::Address`]; `owner` is dropped then.
    pub unsafe fn borrowed(
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
        self.finish(|max| Ok(unsafe { Mapping::borrowed(start, max, owner) }))
    }

    /// Whether all of the block lies in `file`.
    fn check_file(&self, file: &File, offset: u64) -> Result<(), RamBlockError> {
        let page_size = PageSize::host();
        let id = || self.id.clone();
        if !page_size.is_aligned(offset) {
            let page = page_size.bytes();
            return Err(RamBlockError::Unaligned { id: id(), offset, len: self.max, page });
        }
        let found = file_len(file)
            .map_err(|source| RamBlockError::Map { id: id(), len: self.max, source })?;
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

/// The length of a file or a block device; `None` for other things that can be mapped.
fn file_len(mut file: &File) -> io::Result<Option<u64>> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok(Some(metadata.len()))
    } else if metadata.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map(Some)
    } else {
        Ok(None)
    }
}
