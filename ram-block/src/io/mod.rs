//! Scatter/gather I/O: guest memory is written to a descriptor, and read from one, without a copy
//! in between.
//!
//! A [`SendList`] names bytes of the caller and ranges of blocks that are written one
//! after the other, a [`ReceiveList`] those that are filled. With a socket, a pipe or a file
//! Linux copies straight from and to guest memory, up to 1,024 segments at a call. With
//! any other `Write` or `Read`, and on other hosts, they go through a buffer.
//!
//! What is read into a block is marked for its clients like every other write to it, after
//! the store: the kernel's copy is done when its call returns, on this thread, so the order
//! of store and mark is that of [`DirtyMemory::mark`](crate::DirtyMemory::mark).
//!
//! - `error`: a transfer that ended early
//! - `vectored`: Linux's system calls
//! - `copy`: copies through a buffer, for a `Write` or `Read` without a descriptor
//! - `segments`: a list of segments, consumed from its front byte by byte
//! - `send` and `receive`: the lists
//! - `descriptors`: the lists by the system calls
//!
//! Built on `block`.

mod copy;
#[cfg(target_os = "linux")]
mod descriptors;
pub(crate) mod error;
pub(crate) mod receive;
mod segments;
pub(crate) mod send;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
#[cfg(target_os = "linux")]
mod vectored;
