//! The result of receiving a stream.

use crate::devices::section_info::SectionInfo;

/// The result of receiving a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The source machine's name.
    pub machine: String,
    /// Bytes of a page of the stream.
    pub page_size: u64,
    /// Pages of the stream with contents, compressed or not.
    pub pages: u64,
    /// Zero pages of the stream.
    pub zero_pages: u64,
    /// Pages of the stream that were XBZRLE deltas.
    pub delta_pages: u64,
    /// Bytes of the stream, on all connections.
    pub bytes: u64,
    /// The blocks, in the stream's order.
    pub blocks: Vec<BlockInfo>,
    /// The sections of devices, in the stream's order.
    pub sections: Vec<SectionInfo>,
    /// The source's description of its devices' sections (QEMU: vmdesc), usually JSON.
    pub description: Vec<u8>,
}

/// A block of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// Its id.
    pub id: String,
    /// Its length in bytes; 0 if the stream did not announce it.
    pub len: u64,
    /// Pages of the stream with contents, compressed or not.
    pub pages: u64,
    /// Zero pages of the stream.
    pub zero_pages: u64,
    /// Pages of the stream that were XBZRLE deltas.
    pub delta_pages: u64,
}
