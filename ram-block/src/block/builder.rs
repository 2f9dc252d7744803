//! Choosing a block's memory.
#![allow(unsafe_code)]

use std::any::Any;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::block::error::{MAX_ID_LEN, RamBlockError};
use crate::block::ram_block::RamBlock;
use crate::page::PageSize;
use crate::sys::huge_pages::HugePages;
use crate::sys::mapping::{MAPS_FILES, Mapping};

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
    page_size: PageSize,
    huge: HugePages,
}

impl RamBlockBuilder {
    pub(crate) fn new(id: &str, len: u64) -> Self {
        let page_size = PageSize::host();
        Self { id: id.to_owned(), len, max: len, page_size, huge: HugePages::Default }
    }

    /// Reserves addresses and bitmaps for `max` bytes, a multiple of the [page
    /// size](Self::page_size), so that the
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

    /// Tracks the block's memory in pages of `page_size`, of which its length is a multiple: from
    /// 64 bytes up, for RAM of a few KiB, a display whose damage is known to parts of a line, or
    /// code that shares pages with data. Without this they are the host's pages.
    ///
    /// An accelerator logs in pages of the host, and refuses a block with others; so does a
    /// migration if they are smaller than those of its stream. Bitmaps take a bit for each page,
    /// and stores by a [`RamPage`](crate::RamPage) that is larger are marked each.
    ///
    /// ```
    /// use ram_block::{DirtyClient, PageSize, RamBlock};
    ///
    /// let ram = RamBlock::builder("nes.ram", 2048).page_size(PageSize::new(64)?).anonymous()?;
    /// let log = ram.dirty().claim(DirtyClient::VGA)?;
    /// ram.write(130, &[1])?;
    /// assert!(log.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn page_size(mut self, page_size: PageSize) -> Self {
        self.page_size = page_size;
        self
    }

    /// Asks for huge pages. If there are none, as on all hosts but Linux, the next best are used,
    /// down to ordinary pages: [`RamBlock::huge_pages`] returns which. Files have no pages of the
    /// [pool](HugePages::Pool), and memory of the caller keeps the pages that it has.
    pub fn huge_pages(mut self, huge: HugePages) -> Self {
        self.huge = huge;
        self
    }

    /// Private memory.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Id`], [`RamBlockError::Length`], [`RamBlockError::MaxLength`],
    /// [`RamBlockError::Map`], and [`RamBlockError::HostAddresses`] on 32-bit hosts.
    pub fn anonymous(self) -> Result<Arc<RamBlock>, RamBlockError> {
        let huge = self.huge;
        self.finish(|_, reserved| Mapping::anonymous_of(reserved, huge))
    }

    /// Memory in a memory file, which another process can map through
    /// [`RamBlock::file`]. The file is sealed: nobody can change its length.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous), and [`RamBlockError::Unsupported`] on hosts other than
    /// Linux.
    pub fn memfd(self) -> Result<Arc<RamBlock>, RamBlockError> {
        self.require_files("memory file")?;
        let huge = self.huge;
        self.finish(|_, reserved| Mapping::memfd(reserved, huge))
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
    /// open for reading and writing; [`RamBlockError::Unsupported`] on hosts other than Linux.
    pub fn file(self, file: File, offset: u64) -> Result<Arc<RamBlock>, RamBlockError> {
        self.require_files("mapping of a file")?;
        self.check_file(&file, offset)?;
        let huge = self.huge;
        self.finish(|_, reserved| Mapping::file(file, offset, reserved, huge))
    }

    /// As [`file`](Self::file), but pages are copied when they are first written, so that the file
    /// stays as it is: many machines can start from one snapshot.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file); a file that is open for reading suffices.
    pub fn file_private(self, file: &File, offset: u64) -> Result<Arc<RamBlock>, RamBlockError> {
        self.require_files("copy of a mapped file")?;
        self.check_file(file, offset)?;
        let huge = self.huge;
        self.finish(|_, reserved| Mapping::file_private(file, offset, reserved, huge))
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
        self.finish(|max, _| Ok(unsafe { Mapping::from_raw(start, max, owner) }))
    }

    /// Refuses `what` where files cannot be mapped.
    fn require_files(&self, what: &'static str) -> Result<(), RamBlockError> {
        if MAPS_FILES {
            return Ok(());
        }
        // A processor's name, where there is no operating system.
        let host = Some(std::env::consts::OS).filter(|os| !os.is_empty() && *os != "unknown");
        let host = host.unwrap_or(std::env::consts::ARCH);
        Err(RamBlockError::Unsupported { id: self.id.clone(), what, host })
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

    /// Makes the block; `map` maps its memory, given its bytes, and those of the host's pages that
    /// they take.
    fn finish(
        self,
        map: impl FnOnce(usize, usize) -> io::Result<Mapping>,
    ) -> Result<Arc<RamBlock>, RamBlockError> {
        let Self { id, len, max, page_size, .. } = self;
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(RamBlockError::Id { len: id.len() });
        }
        if let Some(len) = [len, max].into_iter().find(|n| *n == 0 || !page_size.is_aligned(*n)) {
            return Err(RamBlockError::Length { len, page: page_size.bytes() });
        }
        if len > max {
            return Err(RamBlockError::MaxLength { id, len, max });
        }
        // Slices of 32-bit hosts have half of the addresses; elsewhere the mapping fails.
        let most = if usize::BITS < u64::BITS { (usize::MAX / 2) as u64 } else { u64::MAX };
        let reserved = max.checked_next_multiple_of(PageSize::host().bytes());
        let reserved = reserved.filter(|reserved| *reserved <= most);
        let narrow = |bytes: u64| usize::try_from(bytes).ok();
        let Some((bytes, reserved)) = narrow(max).zip(reserved.and_then(narrow)) else {
            return Err(RamBlockError::HostAddresses { id, len: max, bits: usize::BITS });
        };
        match map(bytes, reserved) {
            Ok(mapping) => Ok(RamBlock::of(id, (len, max), page_size, mapping)),
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
    } else if is_block_device(&metadata) {
        // The position is shared with the caller's other descriptors of the file.
        let position = file.stream_position()?;
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(position))?;
        Ok(Some(len))
    } else {
        Ok(None)
    }
}

#[cfg(unix)]
fn is_block_device(metadata: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type())
}

#[cfg(not(unix))]
fn is_block_device(_metadata: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod portable_tests;
#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) mod tests;
