//! The errors of a block's memory.

use std::io;

use thiserror::Error;

/// The longest id, in bytes: QEMU's migration stream gives it one length byte.
pub const MAX_ID_LEN: usize = 255;

/// A block that cannot be created or changed, or an access outside of one.
#[derive(Debug, Error)]
pub enum RamBlockError {
    /// The id is empty or too long for a migration stream.
    #[error("A block's id has 1 to {MAX_ID_LEN} bytes, {len} were given")]
    Id {
        /// Length of the given id, in bytes.
        len: usize,
    },
    /// The length is zero or not a whole number of pages.
    #[error("A block's length is a non-zero multiple of {page} bytes, {len} were asked for")]
    Length {
        /// The length asked for, in bytes.
        len: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// The length is more than what is reserved.
    #[error("Block \"{id}\" can have {max} bytes at most, {len} were asked for")]
    MaxLength {
        /// The block's id.
        id: String,
        /// The length asked for, in bytes.
        len: u64,
        /// What is reserved for it, in bytes.
        max: u64,
    },
    /// An offset or a length that must lie on page boundaries does not.
    #[error("{len} bytes at offset {offset:#x} of block \"{id}\" are not whole pages of {page}")]
    Unaligned {
        /// The block's id.
        id: String,
        /// Where it starts in the block, or the block in its file, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// The caller's memory does not start on a page.
    #[error("Memory at {address:#x} for block \"{id}\" does not start on a page of {page} bytes")]
    Address {
        /// The block's id.
        id: String,
        /// The address given.
        address: usize,
        /// The page size, in bytes.
        page: u64,
    },
    /// The file has fewer bytes than the block: an access would be a bus error.
    #[error("Block \"{id}\" needs {needed} bytes of its file, which has {found}")]
    FileTooShort {
        /// The block's id.
        id: String,
        /// Where the block ends in the file, in bytes.
        needed: u64,
        /// The file's length, in bytes.
        found: u64,
    },
    /// The file may not be mapped so: it is not open for writing, or sealed.
    #[error("The file of block \"{id}\" cannot be mapped for reading and writing")]
    Permission {
        /// The block's id.
        id: String,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The operating system cannot map the memory.
    #[error("Mapping {len} bytes for block \"{id}\" failed")]
    Map {
        /// The block's id.
        id: String,
        /// The length asked for, in bytes.
        len: u64,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The operating system cannot discard the memory.
    #[error("Discarding {len} bytes at offset {offset:#x} of block \"{id}\" failed")]
    Discard {
        /// The block's id.
        id: String,
        /// Where the discarded range starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The operating system has no memory for pages that were to be populated, or their file was
    /// truncated.
    #[error("Populating {len} bytes at offset {offset:#x} of block \"{id}\" failed")]
    Populate {
        /// The block's id.
        id: String,
        /// Where the range starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// An access reaches past the end of the block.
    #[error("{len} bytes at offset {offset:#x} reach outside block \"{id}\" of {size:#x} bytes")]
    OutOfBounds {
        /// The block's id.
        id: String,
        /// Where the access starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The block's length, in bytes.
        size: u64,
    },
}
