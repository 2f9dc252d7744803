//! Scatter/gather I/O: guest memory goes to a descriptor, and comes from one, without a
//! copy in between.
//!
//! A [`SendList`] names bytes of the caller and ranges of blocks that are written one
//! after the other, a [`ReceiveList`] those that are filled. With a socket, a pipe or a file
//! the kernel copies straight from and to guest memory, up to 1,024 pieces at a call. With
//! any other `Write` or `Read` they go through a buffer.
//!
//! What is read into a block is marked for its clients like every other write to it, after
//! the store: the kernel's copy is done when its call returns, on this thread, so the order
//! of store and mark is that of [`DirtyMemory::mark`](crate::DirtyMemory::mark).

use std::io;

use thiserror::Error;

use crate::block::RamBlock;

mod pieces;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod vectored;

pub use receive::ReceiveList;
pub use send::SendList;

/// Bytes of the buffer between guest memory and a `Write` or `Read`.
const BUFFER: usize = 1 << 18;

/// A transfer that ended early. What was transferred has left its list.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The descriptor, the `Write` or the `Read` failed.
    #[error("A transfer failed after {done} bytes")]
    Io {
        /// Bytes that were transferred by this call.
        done: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// There was nothing left to read, or nothing more could be written.
    #[error("A stream ended after {done} bytes, {missing} are missing")]
    Ended {
        /// Bytes that were transferred by this call.
        done: u64,
        /// Bytes that were not.
        missing: u64,
    },
    /// Memory of a block is not there: the file that it maps was made shorter.
    #[error("A transfer stopped after {done} bytes: byte {offset:#x} of block \"{id}\" is gone")]
    Vanished {
        /// Bytes that were transferred by this call.
        done: u64,
        /// The block's id.
        id: String,
        /// Where in the block the first such byte is.
        offset: u64,
    },
}

impl TransferError {
    /// Bytes that the failed call has transferred.
    pub fn done(&self) -> u64 {
        match self {
            Self::Io { done, .. } | Self::Ended { done, .. } | Self::Vanished { done, .. } => *done,
        }
    }
}

impl TransferError {
    /// The same, of a call that had transferred `before` already.
    fn after(mut self, before: u64) -> Self {
        match &mut self {
            Self::Io { done, .. } | Self::Ended { done, .. } | Self::Vanished { done, .. } => {
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
            TransferError::Ended { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
            TransferError::Vanished { .. } => Self::other(error),
        }
    }
}

/// Copies from `offset` of a block on; if some of it is not there, says where.
fn copy_out(block: &RamBlock, offset: u64, buffer: &mut [u8]) -> Result<(), u64> {
    let memory = block.reserved(offset..offset + buffer.len() as u64);
    if block.may_vanish() {
        if let Some(count) = vectored::copy_out(&memory, buffer) {
            return if count == buffer.len() { Ok(()) } else { Err(offset + count as u64) };
        }
    }
    memory.copy_to(buffer);
    Ok(())
}

/// Copies to `offset` of a block on and marks it; if some of it is not there, says where.
fn copy_in(block: &RamBlock, offset: u64, bytes: &[u8]) -> Result<(), u64> {
    let memory = block.reserved(offset..offset + bytes.len() as u64);
    let mut result = Ok(());
    match block.may_vanish().then(|| vectored::copy_in(bytes, &memory)).flatten() {
        Some(count) if count == bytes.len() => {}
        Some(count) => result = Err(offset + count as u64),
        None => memory.copy_from(bytes),
    }
    block.dirty().mark(offset, bytes.len() as u64);
    result
}
