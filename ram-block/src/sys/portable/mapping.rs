//! Memory of the program's allocator, which most hosts give out as it is touched.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use crate::page::{PageSize, index};
use crate::sys::huge_pages::HugePages;
use crate::sys::volatile::VolatileBytes;

/// Whether files can be mapped, and memory files made.
pub(crate) const MAPS_FILES: bool = false;

/// What the allocator is asked to align to: no more than every allocator does by itself. Rust
/// zeroes what is aligned to more by writing it, which would take memory for all of a block.
const ALIGNMENT: usize = align_of::<u64>();

/// What backs a mapping.
#[derive(Debug)]
enum MappingKind {
    /// Memory that was allocated by this layout from this address on.
    Allocated(NonNull<u8>, Layout),
    /// Memory of the caller, and the owner that keeps it alive.
    Borrowed(#[allow(dead_code)] Box<dyn Any + Send + Sync>),
}

/// Readable and writable memory, aligned to a page.
///
/// Invariant: `start` is the start of `len` bytes, which live until the value is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    kind: MappingKind,
}

// SAFETY: the memory has no thread affinity, and the methods that reach it (through `block`) use
// accesses that tolerate concurrent ones.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Does nothing: no host but Linux is asked for huge pages.
pub(crate) fn prefer_huge_pages(_words: &mut [u64]) {}

impl Mapping {
    /// Zero memory of `len` bytes (non-zero).
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let page = index(PageSize::host().bytes());
        let none = || io::Error::from(io::ErrorKind::OutOfMemory);
        // A page more, so that one starts among the first.
        let total = len.checked_add(page).ok_or_else(none)?;
        let layout = Layout::from_size_align(total, ALIGNMENT).map_err(|_| none())?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?;
        let skip = base.addr().get().next_multiple_of(page) - base.addr().get();
        // SAFETY: less than a page is skipped, which was allocated in addition.
        let start = unsafe { base.add(skip) };
        Ok(Self { start, len, kind: MappingKind::Allocated(base, layout) })
    }

    /// As [`anonymous`](Self::anonymous); there are no huge pages.
    pub(crate) fn anonymous_of(len: usize, _huge: HugePages) -> io::Result<Self> {
        Self::anonymous(len)
    }

    /// Not on this host: see [`MAPS_FILES`].
    pub(crate) fn memfd(_len: usize, _huge: HugePages) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Not on this host: see [`MAPS_FILES`].
    pub(crate) fn file(_: File, _offset: u64, _len: usize, _: HugePages) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Not on this host: see [`MAPS_FILES`].
    pub(crate) fn file_private(
        _: &File,
        _offset: u64,
        _len: usize,
        _: HugePages,
    ) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The caller's memory, kept alive by `owner`.
    ///
    /// # Safety
    ///
    /// From `start`, `len` bytes are readable and writable until `owner` is dropped, and all
    /// accesses to them meanwhile are volatile or atomic, or those of a guest or of another
    /// process.
    pub(crate) unsafe fn from_raw(
        start: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { start, len, kind: MappingKind::Borrowed(owner) }
    }

    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the memory, cut to what there is.
    #[inline]
    pub(crate) fn bytes(&self, range: Range<usize>) -> VolatileBytes<'_> {
        let (start, end) = (range.start.min(self.len), range.end.min(self.len));
        // SAFETY: the place lies within the memory, or at its end.
        let address = unsafe { self.start.add(start) };
        // SAFETY: the memory is valid for its length, within which the range lies, as long as
        // `self` lives, and all accesses to it tolerate concurrent ones.
        unsafe { VolatileBytes::new(address, end.saturating_sub(start)) }
    }

    #[allow(clippy::unused_self)] // the interface of `sys`
    pub(crate) fn huge_pages(&self) -> HugePages {
        HugePages::Default
    }

    /// The file that the memory is shared through: none.
    #[allow(clippy::unused_self)] // the interface of `sys`
    pub(crate) fn shared_file(&self) -> Option<&File> {
        None
    }

    #[allow(clippy::unused_self)] // the interface of `sys`
    pub(crate) fn file_offset(&self) -> u64 {
        0
    }

    /// Makes `bytes`, whole words of the memory, read as zeros; an allocator takes no pages back.
    /// Fails with `Unsupported` for memory of the caller.
    pub(crate) fn discard(&self, bytes: Range<usize>) -> io::Result<()> {
        match self.kind {
            MappingKind::Allocated(..) => {
                self.bytes(bytes).zero();
                Ok(())
            }
            MappingKind::Borrowed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes the pages of `bytes`, whole pages of the memory, writable without a fault.
    #[allow(clippy::unnecessary_wraps)] // the interface of `sys`
    pub(crate) fn populate(&self, bytes: Range<usize>) -> io::Result<()> {
        self.bytes(bytes).touch(index(PageSize::host().bytes()));
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let MappingKind::Allocated(base, layout) = self.kind {
            // SAFETY: `anonymous` allocated this by the same layout, and slices of it borrow the
            // owner, so none is left.
            unsafe { dealloc(base.as_ptr(), layout) };
        }
    }
}
