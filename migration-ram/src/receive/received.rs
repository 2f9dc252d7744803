//! What a stream brought, for the caller.

use crate::devices::section_info::SectionInfo;

/// What a stream brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The name of the machine that sent it.
    pub machine: String,
    /// Bytes of a page of the stream.
    pub page_size: u64,
    /// Pages of the stream that came with their bytes, compressed or not.
    pub pages: u64,
    /// Pages of the stream that came as zeros.
    pub zero_pages: u64,
    /// Pages of the stream that came as what had changed of them since they came last.
    pub delta_pages: u64,
    /// Bytes of the stream, on all connections.
    pub bytes: u64,
    /// The blocks, in the stream's order.
    pub blocks: Vec<BlockInfo>,
    /// The sections of devices, in the stream's order.
    pub sections: Vec<SectionInfo>,
    /// What the sender says of its devices' sections: JSON, usually.
    pub description: Vec<u8>,
}

/// A block of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its id.
    pub id: String,
    /// Its length in bytes; 0 if the stream did not say.
    pub len: u64,
    /// Pages of the stream that came with their bytes, compressed or not.
    pub pages: u64,
    /// Pages of the stream that came as zeros.
    pub zero_pages: u64,
    /// Pages of the stream that came as what had changed of them since they came last.
    pub delta_pages: u64,
}
