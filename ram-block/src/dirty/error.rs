//! The errors of a block's bitmaps.

use std::io;

use thiserror::Error;

use crate::dirty::client::{ClientSet, DirtyClient};

/// A request that a block's bitmaps cannot serve. `words` are of 64 bits.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // of fields: the messages say what they are
pub enum DirtyError {
    /// Pages outside the block were named: `end` is one past the last.
    #[error("Pages {start}..{end} were asked for, but the block has {pages}")]
    OutOfRange { start: u64, end: u64, pages: u64 },
    /// The bitmap is too short for the pages it should describe.
    #[error("A bitmap of {words} words cannot describe {pages} pages, which need {needed}")]
    ShortBitmap { words: usize, pages: u64, needed: u64 },
    /// The code client is not switched on and off and has no harvest: it watches pages.
    #[error("The code client has no dirty log: its pages are watched by watch_code")]
    CodeClient,
    /// The block has a code watch already.
    #[error("The code of this block is watched already")]
    Watched,
    /// The hook of a code watch asked for pages to be watched.
    #[error("Pages cannot be watched from within the hook that reports one")]
    CalledFromHook,
    /// All numbers that are not built in are claimed.
    #[error("No client is left for \"{name}\": all that are not built in are claimed")]
    TooManyClients { name: String },
    /// The operating system has no addresses for a bitmap, or the process may not lock as much
    /// (`RLIMIT_MEMLOCK`, after `mlockall`).
    #[error("There is no memory for a bitmap of {pages} pages: {kind}")]
    NoMemory { pages: u64, kind: io::ErrorKind },
    /// The client's log is claimed already.
    #[error("The {client} log is claimed by \"{by}\" already")]
    Claimed { client: DirtyClient, by: String },
    /// The claim has ended, so there is nothing to harvest.
    #[error("The claim of the {client} log has ended; logs that are on: {enabled}")]
    ClientOff { client: DirtyClient, enabled: ClientSet },
}
