//! A piece of guest RAM.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::error::RamBlockError;
use crate::block::scalar::Scalar;
use crate::dirty::claim::DirtyClaim;
use crate::dirty::memory::DirtyMemory;
use crate::page::{PageSize, index};
use crate::sys::huge_pages::HugePages;
use crate::sys::mapping::Mapping;
use crate::sys::volatile::VolatileBytes;

/// A piece of guest RAM: host memory and its dirty bitmaps.
///
/// The memory is zero and takes no host memory until it is touched. It stays
/// mapped at one place as long as the block lives. Guests and threads may access
/// it at the same time: all accesses here are volatile copies that tolerate that.
#[derive(Debug)]
pub struct RamBlock {
    id: String,
    /// All that is reserved, in whole pages of the host unless it is the caller's; `dirty` has the
    /// length that is in use.
    mapping: Mapping,
    max_len: u64,
    dirty: Arc<DirtyMemory>,
    resizing: Mutex<()>,
}

impl RamBlock {
    /// A block that uses `len` bytes of `mapping`, and up to `max_len` later, which are whole pages
    /// of `page_size` bytes.
    pub(crate) fn of(
        id: String,
        (len, max_len): (u64, u64),
        page_size: PageSize,
        mapping: Mapping,
    ) -> Arc<Self> {
        let pages = (page_size.count(len), page_size.count(max_len));
        let dirty = DirtyMemory::with_room(pages.0, pages.1, page_size);
        Arc::new(Self { id, mapping, max_len, dirty, resizing: Mutex::new(()) })
    }

    /// The name in a migration stream.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The length in bytes, a multiple of the page size.
    #[allow(clippy::len_without_is_empty)] // never empty
    #[inline]
    pub fn len(&self) -> u64 {
        let page = self.page_size().bytes();
        self.pages() * page
    }

    /// The length that the block can be [resized](Self::resize) to, in bytes.
    pub fn max_len(&self) -> u64 {
        self.max_len
    }

    /// The length in pages.
    #[inline]
    pub fn pages(&self) -> u64 {
        self.dirty.pages()
    }

    /// The page size of the block's bitmaps: the host's, unless the block was
    /// [built](crate::RamBlockBuilder::page_size) with another.
    #[inline]
    pub fn page_size(&self) -> PageSize {
        self.dirty.page_size()
    }

    /// The dirty bitmaps.
    pub fn dirty(&self) -> &Arc<DirtyMemory> {
        &self.dirty
    }

    /// The memory file, if there is one. Writes through the descriptor or another
    /// mapping of it mark nothing.
    pub fn file(&self) -> Option<&File> {
        self.mapping.shared_file()
    }

    /// Where in its [file](Self::file) the block's first byte is, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.mapping.file_offset()
    }

    /// The huge pages that the block has, which may be smaller than those asked for.
    pub fn huge_pages(&self) -> HugePages {
        self.mapping.huge_pages()
    }

    /// The host address of the block's first byte, page-aligned, to be passed to the kernel. Writes
    /// through it are not marked.
    pub fn host_address(&self) -> *mut u8 {
        self.mapping.start().as_ptr()
    }

    /// `len` bytes from `offset` on; writes to them are not marked.
    #[inline]
    pub(crate) fn bytes(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<VolatileBytes<'_>, RamBlockError> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len());
        let end = end.ok_or_else(|| self.out_of_bounds(offset, len as u64))?;
        Ok(self.mapping.bytes(index(offset)..index(end)))
    }

    #[cold]
    pub(crate) fn out_of_bounds(&self, offset: u64, len: u64) -> RamBlockError {
        RamBlockError::OutOfBounds { id: self.id.clone(), offset, len, size: self.len() }
    }

    /// Makes `len` bytes from `offset` on read as zeros, gives their memory back to the
    /// host, and marks their pages for every client that is on.
    ///
    /// Others that share the memory see the zeros too. Memory of the caller is zeroed, and not
    /// given back. Memory that is locked (`mlock`, `mlockall`) is given back too, and locked again
    /// as it is touched; before Linux 5.18 it is zeroed and kept. A concurrent write of a guest may
    /// survive or not.
    ///
    /// Of a [copy of a file](crate::RamBlockBuilder::file_private) 1,024 separate parts, and what
    /// adjoins them, can be given back; what is discarded beyond these is zeroed and its memory
    /// kept, as each part takes two of the process's mappings. The same holds for locked memory,
    /// and before Linux 6.12, where a mapping cannot be replaced atomically.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; [`RamBlockError::Unaligned`] unless both are
    /// multiples of the page size; [`RamBlockError::Discard`] if the operating system
    /// refuses, as it does for parts of a huge page and for files on some file systems.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), RamBlockError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(self.out_of_bounds(offset, len));
        }
        let page_size = self.page_size();
        if !page_size.is_aligned(offset) || !page_size.is_aligned(len) {
            let (id, page) = (self.id.clone(), page_size.bytes());
            return Err(RamBlockError::Unaligned { id, offset, len, page });
        }
        self.zero_pages(offset..offset + len)
    }

    /// Zeroes whole pages and marks them, even if only some of them could be zeroed.
    fn zero_pages(&self, bytes: Range<u64>) -> Result<(), RamBlockError> {
        let result = self.zero_but_code(bytes.clone());
        self.dirty.mark_code(&bytes);
        result
    }

    /// As [`zero_pages`](Self::zero_pages), but does not notify a code watch.
    fn zero_but_code(&self, bytes: Range<u64>) -> Result<(), RamBlockError> {
        let Range { start: offset, end } = bytes;
        let len = end - offset;
        // What is no whole page of the host cannot be given back.
        let host = PageSize::host();
        let first = (host.count(offset) * host.bytes()).min(end);
        let last = (host.page_of(end) * host.bytes()).max(first);
        self.write_zeros(offset..first);
        self.write_zeros(last..end);
        let result = match self.mapping.discard(index(first)..index(last)) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                self.write_zeros(first..last);
                Ok(())
            }
            result => result,
        };
        self.dirty.mark_but_code(&bytes);
        result.map_err(|source| {
            let id = self.id.clone();
            RamBlockError::Discard { id, offset, len, source }
        })
    }

    /// Zeroes bytes of the reserved memory, unmarked.
    pub(crate) fn write_zeros(&self, bytes: Range<u64>) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut at = bytes.start;
        while at < bytes.end {
            let some = (bytes.end - at).min(ZEROS.len() as u64);
            self.reserved(at..at + some).copy_from(&ZEROS[..index(some)]);
            at += some;
        }
    }

    /// Bytes of the reserved memory, whatever the length is now; writes to them are not
    /// marked. Cut to what there is.
    pub(crate) fn reserved(&self, bytes: Range<u64>) -> VolatileBytes<'_> {
        self.mapping.bytes(index(bytes.start)..index(bytes.end))
    }

    #[inline]
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Makes the host allocate the pages that `range` spans, so that a store finds them without a
    /// fault. Their contents stay, and nothing is marked.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`], and [`RamBlockError::Populate`] if there is not enough
    /// memory; some of the pages may be allocated then.
    pub fn populate(&self, range: Range<u64>) -> Result<(), RamBlockError> {
        self.check_range(&range)?;
        let page = PageSize::host();
        let touched = page.pages_spanned(range.start, range.end - range.start);
        let end = index(touched.end * page.bytes()).min(self.mapping.len());
        let bytes = index(touched.start * page.bytes())..end;
        self.mapping.populate(bytes).map_err(|source| {
            let (id, offset, len) = (self.id.clone(), range.start, range.end - range.start);
            RamBlockError::Populate { id, offset, len, source }
        })
    }

    /// Whether memory of the block can vanish, so that an access kills the process (SIGBUS).
    #[cfg(target_os = "linux")]
    pub(crate) fn may_vanish(&self) -> bool {
        self.mapping.may_vanish()
    }

    /// Whether the block has the bytes `range`.
    pub(crate) fn check_range(&self, range: &Range<u64>) -> Result<(), RamBlockError> {
        let (offset, size) = (range.start, self.len());
        if range.start <= range.end && range.end <= size {
            return Ok(());
        }
        let len = range.end.saturating_sub(offset);
        Err(RamBlockError::OutOfBounds { id: self.id.clone(), offset, len, size })
    }

    /// Makes the block `len` bytes long, within what is reserved for it.
    ///
    /// Added pages read as zeros and are dirty for every client that is on; pages that are cut off
    /// are discarded with their bits. [`DirtyMemory::epoch`] changes for every client, so that a
    /// consumer that relies on a length can detect it. Slices that were lent before stay valid
    /// memory. A memory map shows the new length when its region is resized: after this when
    /// growing, before it when shrinking.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::Length`], [`RamBlockError::MaxLength`], and
    /// [`RamBlockError::Discard`]; the length is as it was, though a part of what was to be
    /// cut off may be zero.
    pub fn resize(&self, len: u64) -> Result<(), RamBlockError> {
        let page_size = self.page_size();
        if len == 0 || !page_size.is_aligned(len) {
            return Err(RamBlockError::Length { len, page: page_size.bytes() });
        }
        let max = self.max_len();
        if len > max {
            return Err(RamBlockError::MaxLength { id: self.id.clone(), len, max });
        }
        let resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.len();
        // Added pages may hold a file's bytes, or writes through a slice lent before a shrink.
        let changed = old.min(len)..old.max(len);
        let result = self.zero_but_code(changed.clone());
        if result.is_ok() {
            self.dirty.resize(page_size.count(len));
        }
        drop(resizing);
        // Without the lock: a hook may resize this block too, or one whose hook resizes it.
        self.dirty.mark_code(&changed);
        result
    }

    /// Copies `buf.len()` bytes at `offset` out of the block.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), RamBlockError> {
        if self.read_aligned(offset, buf) { Ok(()) } else { self.read_bytes(offset, buf) }
    }

    /// As [`read`](Self::read), of an integer of 1, 2, 4 or 8 bytes that is aligned to its size;
    /// returns false, without a copy, if it is none, or not in the block. What processors and
    /// devices read: some instructions, which call nothing.
    #[inline(always)]
    pub fn read_aligned(&self, offset: u64, buf: &mut [u8]) -> bool {
        match buf.len() {
            1 => self.read_scalar::<u8>(offset, buf),
            2 => self.read_scalar::<u16>(offset, buf),
            4 => self.read_scalar::<u32>(offset, buf),
            8 => self.read_scalar::<u64>(offset, buf),
            _ => false,
        }
    }

    /// Of any length: apart, so that what processors read is compiled into the caller.
    #[inline(never)]
    fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<(), RamBlockError> {
        self.bytes(offset, buf.len())?.copy_to(buf);
        Ok(())
    }

    #[inline(always)]
    fn read_scalar<T: Scalar>(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(cell) = self.cell::<T>(offset) else { return false };
        buf.copy_from_slice(&T::load(cell).to_bytes()[..T::SIZE]);
        true
    }

    #[inline(always)]
    fn write_scalar<T: Scalar>(&self, offset: u64, data: &[u8]) -> bool {
        let Some(cell) = self.cell::<T>(offset) else { return false };
        let mut bytes = [0; 8];
        bytes[..T::SIZE].copy_from_slice(data);
        T::store(cell, T::from_bytes(bytes));
        self.dirty.mark(offset, T::SIZE as u64);
        true
    }

    /// The integer at `offset`, if the block has it and it is aligned.
    #[inline(always)]
    fn cell<T: Scalar>(&self, offset: u64) -> Option<&T::Atomic> {
        let size = T::SIZE as u64;
        if offset % size != 0 || self.len().checked_sub(size)? < offset {
            return None;
        }
        // SAFETY: the integer lies within the block, and so within the mapping.
        let address = unsafe { self.mapping.start().add(index(offset)) };
        // SAFETY: the mapping starts at a page, so that the address is as aligned as the offset,
        // and is valid as long as `self` lives; all accesses to it tolerate concurrent ones.
        Some(unsafe { T::atomic(address) })
    }

    /// Copies `data` into the block at `offset` and marks its pages.
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), RamBlockError> {
        if self.write_aligned(offset, data) { Ok(()) } else { self.write_bytes(offset, data) }
    }

    /// As [`write`](Self::write), of an integer of 1, 2, 4 or 8 bytes that is aligned to its size;
    /// returns false, without a copy, if it is none, or not in the block.
    #[inline(always)]
    pub fn write_aligned(&self, offset: u64, data: &[u8]) -> bool {
        match data.len() {
            1 => self.write_scalar::<u8>(offset, data),
            2 => self.write_scalar::<u16>(offset, data),
            4 => self.write_scalar::<u32>(offset, data),
            8 => self.write_scalar::<u64>(offset, data),
            _ => false,
        }
    }

    /// As [`write`](Self::write), by the client whose log `claim` is: marks the pages for every
    /// other client that is on, and leaves its own log as it is.
    ///
    /// For a client that puts memory back as it was, and to which that is no change: a reset, a
    /// rewind. A claim of another block makes this a write like any other.
    ///
    /// ```
    /// use ram_block::RamBlock;
    ///
    /// let ram = RamBlock::anonymous("ram", 16 << 20)?;
    /// let [reset, display] = ["reset", "display"].map(|name| ram.dirty().claim(name));
    /// let (reset, display) = (reset?, display?);
    /// ram.write_by(&reset, 0x5000, b"as it was")?;
    /// assert!(!reset.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
    /// assert!(display.snapshot_and_clear(0..ram.pages())?.commit().is_dirty(5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RamBlockError::OutOfBounds`]; nothing is copied then.
    pub fn write_by(
        &self,
        claim: &DirtyClaim,
        offset: u64,
        data: &[u8],
    ) -> Result<(), RamBlockError> {
        self.bytes(offset, data.len())?.copy_from(data);
        if Arc::ptr_eq(claim.dirty(), &self.dirty) {
            claim.mark_for_others(offset, data.len() as u64);
        } else {
            self.dirty.mark(offset, data.len() as u64);
        }
        Ok(())
    }

    /// As [`read_bytes`](Self::read_bytes).
    #[inline(never)]
    fn write_bytes(&self, offset: u64, data: &[u8]) -> Result<(), RamBlockError> {
        self.bytes(offset, data.len())?.copy_from(data);
        self.dirty.mark(offset, data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_ids_and_lengths_are_refused_by_name() {
        let page = PageSize::host().bytes();
        for len in [0, 1, page - 1, page + 1] {
            let refused = RamBlock::anonymous("ram", len).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!(
                    "A block's length is a non-zero multiple of {page} bytes, {len} were asked for"
                )
            );
        }
        for id in ["", &"x".repeat(256)] {
            assert!(matches!(RamBlock::anonymous(id, page), Err(RamBlockError::Id { .. })));
        }
        let refused = RamBlock::anonymous("huge", (1 << 62) - page).unwrap_err();
        assert!(
            match refused {
                RamBlockError::Map { .. } => usize::BITS == 64,
                RamBlockError::HostAddresses { len, .. } =>
                    usize::BITS < 64 && len == (1 << 62) - page,
                _ => false,
            },
            "{refused}"
        );
    }

    #[test]
    fn accesses_outside_are_refused_with_the_place() {
        let page = PageSize::host().bytes();
        let ram = RamBlock::anonymous("ram", page).unwrap();
        for (offset, len) in [(page, 1), (page - 1, 2), (u64::MAX, 2)] {
            let refused = ram.write(offset, &vec![0; len]).unwrap_err();
            assert!(matches!(
                refused,
                RamBlockError::OutOfBounds { offset: o, len: l, size, .. }
                    if o == offset && l == len as u64 && size == page
            ));
        }
    }

    /// Clean memory and clean bitmaps are addresses only.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_block_of_16_tib_with_three_clients_costs_what_is_dirty() {
        use std::ops::ControlFlow;

        use crate::dirty::client::{Claimant, DirtyClient};
        let ram = RamBlock::anonymous("huge", 16 << 40).unwrap();
        let [vga, migration] = [DirtyClient::VGA, DirtyClient::MIGRATION];
        let clients: [Claimant; 3] = [vga.into(), migration.into(), "reset".into()];
        let logs = clients.map(|client| ram.dirty().claim(client).unwrap());
        let (page, last) = (ram.page_size().bytes(), ram.pages() - 1);
        ram.write(last * page, b"at the end").unwrap();
        ram.dirty().merge(last / 2, 2, &[0b11]).unwrap();
        ram.dirty().mark(0, 1);
        for log in logs {
            let mut runs = Vec::new();
            let note = |run| {
                runs.push(run);
                ControlFlow::<()>::Continue(())
            };
            let _ = log.visit_runs(0..ram.pages(), 0, note).unwrap();
            assert_eq!(runs, [0..1, last / 2..last / 2 + 2, last..last + 1]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_memory_file_is_shared() {
        use std::os::unix::fs::FileExt;
        let ram = RamBlock::memfd("shared", 1 << 20).unwrap();
        ram.write(5000, b"seen by both").unwrap();
        let mut seen = [0; 12];
        ram.file().unwrap().read_exact_at(&mut seen, 5000).unwrap();
        assert_eq!(&seen, b"seen by both");
    }
}
