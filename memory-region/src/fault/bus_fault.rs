//! How devices refuse accesses.

use thiserror::Error;

/// How a device refuses an access: QEMU's `MemTxResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BusFault {
    /// The device failed, or refuses the access (`MEMTX_ERROR`; AXI: SLVERR).
    #[error("a device error")]
    Device,
    /// Nothing is at this offset (`MEMTX_DECODE_ERROR`; AXI: DECERR).
    #[error("a decode error")]
    Decode,
    /// The access is not permitted (`MEMTX_ACCESS_ERROR`).
    #[error("an access error")]
    Access,
}
