//! The errors of a transfer.

use std::io;

use thiserror::Error;

/// A transfer that ended early: `done` bytes were transferred by this call, and have been removed
/// from its list.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum TransferError {
    /// The descriptor, the `Write` or the `Read` failed.
    #[error("A transfer failed after {done} bytes")]
    Io { done: u64, source: io::Error },
    /// There was nothing left to read, or nothing more could be written.
    #[error("A stream ended after {done} bytes, {missing} are missing")]
    UnexpectedEof { done: u64, missing: u64 },
    /// Memory of a block is gone: the file that it maps was truncated.
    #[error("A transfer stopped after {done} bytes: byte {offset:#x} of block \"{id}\" is gone")]
    MemoryGone { done: u64, id: String, offset: u64 },
}

impl TransferError {
    /// Bytes that the failed call has transferred.
    pub fn done(&self) -> u64 {
        let (Self::Io { done, .. }
        | Self::UnexpectedEof { done, .. }
        | Self::MemoryGone { done, .. }) = self;
        *done
    }

    /// The same, of a call that had transferred `before` already.
    pub(super) fn after(mut self, before: u64) -> Self {
        let (Self::Io { done, .. }
        | Self::UnexpectedEof { done, .. }
        | Self::MemoryGone { done, .. }) = &mut self;
        *done += before;
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
