//! The errors of a block's memory.

use std::io;

use thiserror::Error;

/// The longest id, in bytes: QEMU's migration stream gives it one length byte.
pub const MAX_ID_LEN: usize = 255;

/// A block that cannot be created or changed, or an access outside of one. Lengths and offsets are
/// in bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum RamBlockError {
    /// The id is empty or too long for a migration stream.
    #[error("A block's id has 1 to {MAX_ID_LEN} bytes, {len} were given")]
    Id { len: usize },
    /// The length is zero or not a whole number of pages.
    #[error("A block's length is a non-zero multiple of {page} bytes, {len} were asked for")]
    Length { len: u64, page: u64 },
    /// The length is more than what is reserved.
    #[error("Block \"{id}\" can have {max} bytes at most, {len} were asked for")]
    MaxLength { id: String, len: u64, max: u64 },
    /// An offset, in the block or of the block in its file, or a length that must lie on page
    /// boundaries does not.
    #[error("{len} bytes at offset {offset:#x} of block \"{id}\" are not whole pages of {page}")]
    Unaligned { id: String, offset: u64, len: u64, page: u64 },
    /// The caller's memory does not start on a page.
    #[error("Memory at {address:#x} for block \"{id}\" does not start on a page of {page} bytes")]
    Address { id: String, address: usize, page: u64 },
    /// The file has fewer bytes than the block: an access would be a bus error.
    #[error("Block \"{id}\" needs {needed} bytes of its file, which has {found}")]
    FileTooShort { id: String, needed: u64, found: u64 },
    /// The file may not be mapped so: it is not open for writing, or sealed.
    #[error("The file of block \"{id}\" cannot be mapped for reading and writing")]
    Permission { id: String, source: io::Error },
    /// The host has no such memory: what was asked for, and the host's operating system or, if it
    /// has none, its processor.
    #[error("Block \"{id}\" cannot be made on {host}, which has no {what} for it")]
    Unsupported { id: String, what: &'static str, host: &'static str },
    /// The host's addresses have too few bits for so many bytes.
    #[error("Block \"{id}\" of {len} bytes is too long for the {bits}-bit addresses of this host")]
    HostAddresses { id: String, len: u64, bits: u32 },
    /// The operating system cannot map the memory.
    #[error("Mapping {len} bytes for block \"{id}\" failed")]
    Map { id: String, len: u64, source: io::Error },
    /// The operating system cannot discard the memory.
    #[error("Discarding {len} bytes at offset {offset:#x} of block \"{id}\" failed")]
    Discard { id: String, offset: u64, len: u64, source: io::Error },
    /// The operating system has no memory for pages that were to be populated, or their file was
    /// truncated.
    #[error("Populating {len} bytes at offset {offset:#x} of block \"{id}\" failed")]
    Populate { id: String, offset: u64, len: u64, source: io::Error },
    /// An access reaches past the end of the block.
    #[error("{len} bytes at offset {offset:#x} reach outside block \"{id}\" of {size:#x} bytes")]
    OutOfBounds { id: String, offset: u64, len: u64, size: u64 },
}
