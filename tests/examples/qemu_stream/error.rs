//! What can go wrong.

use std::io;
use std::path::PathBuf;

use memory_region::MapError;
use migration_ram::{ReceiveError, SendError};
use ram_block::RamBlockError;
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("\"{path}\" cannot be opened")]
    Open { path: String, source: io::Error },
    #[error("\"{}\" cannot be used", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{blocks} blocks need as many sizes or files, {sizes} sizes and {files} files are given"
    )]
    Sizes { blocks: usize, sizes: usize, files: usize },
    #[error("\"{}\" has {len} bytes, the block {size}", path.display())]
    FileLength { path: PathBuf, len: u64, size: u64 },
    #[error(
        "Block \"{id}\" of {len} bytes makes more than the {most} bytes that are taken (--most)"
    )]
    TooLarge { id: String, len: u64, most: u64 },
    #[error("The stream does not say how long block \"{id}\" is")]
    NoLength { id: String },
    #[error("Block \"{id}\" does not hold what was asked for: it differs at {at:#x}")]
    Differs { id: String, at: u64 },
    #[error(transparent)]
    Block(#[from] RamBlockError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("The stream was not written")]
    Send(#[from] SendError),
    #[error("The stream was not read")]
    Receive(#[from] ReceiveError),
    #[error("Nothing can be printed")]
    Print(#[from] io::Error),
}
