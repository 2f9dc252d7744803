//! The errors of a transfer.

use std::io;

use thiserror::Error;

/// A transfer that ended early. What was transferred has been removed from its list.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The descriptor, the `Write` or the `Read` failed.
    #[error("A transfer failed after {done} bytes")]
    Io {
        /// Bytes that were transferred by this call.
        done: u64,
        /// The error of the descriptor, the `Write` or the `Read`.
        #[source]
        source: io::Error,
    },
    /// There was nothing left to read, or nothing more could be written.
    #[error("A stream ended after {done} bytes, {missing} are missing")]
    UnexpectedEof {
        /// Bytes that were transferred by this call.
        done: u64,
        /// Bytes that were not.
        missing: u64,
    },
    /// Memory of a block is gone: the file that it maps was truncated.
    #[error("A transfer stopped after {done} bytes: byte {offset:#x} of block \"{id}\" is gone")]
    MemoryGone {
        /// Bytes that were transferred by this call.
        done: u64,
        /// The block's id.
        id: String,
        /// The first such byte, counted from the block's start.
        offset: u64,
    },
}

impl TransferError {
    /// Bytes that the failed call has transferred.
    pub fn done(&self) -> u64 {
        match self {
            Self::Io { done, .. }
            | Self::UnexpectedEof { done, .. }
            | Self::MemoryGone { done, .. } => *done,
        }
    }
}

impl TransferError {
    /// The same, of a call that had transferred `before` already.
    pub(super) fn after(mut self, before: u64) -> Self {
        match &mut self {
            Self::Io { done, .. }
            | Self::UnexpectedEof { done, .. }
            | Self::MemoryGone { done, .. } => {
                *done += before;
            }
        }
        self
    }
}

impl From<TransferError> for io::Error {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Io { source, .. } => source,
            TransferError::UnexpectedEof { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
            TransferError::MemoryGone { .. } => Self::other(error),
        }
    }
}
