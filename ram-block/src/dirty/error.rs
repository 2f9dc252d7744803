//! What can go wrong with a block's bitmaps.

use std::io;

use thiserror::Error;

use crate::dirty::client::{ClientSet, DirtyClient};

/// A request that a block's bitmaps cannot serve.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DirtyError {
    /// Pages outside the block were named.
    #[error("Pages {start}..{end} were asked for, but the block has {pages}")]
    OutOfRange {
        /// First page asked for.
        start: u64,
        /// One past the last page asked for.
        end: u64,
        /// How many pages the block has.
        pages: u64,
    },
    /// The bitmap to merge is too short for the pages it should describe.
    #[error("A bitmap of {words} words cannot describe {pages} pages, which need {needed}")]
    ShortBitmap {
        /// Words given, of 64 bits.
        words: usize,
        /// Pages to be described.
        pages: u64,
        /// Words needed.
        needed: u64,
    },
    /// The code client is not switched on and off and has no harvest: it watches pages.
    #[error("Client code has no dirty log: its pages are watched by watch_code")]
    CodeClient,
    /// Somebody watches the block's code already.
    #[error("The code of this block is watched already")]
    Watched,
    /// A hook that is told of a write wants pages to be watched.
    #[error("Pages cannot be watched from within the hook that reports one")]
    CalledFromHook,
    /// The number was not given out, or its registration is gone.
    #[error("{client} is not registered here")]
    Unregistered {
        /// The client asked for.
        client: DirtyClient,
    },
    /// All numbers are given out.
    #[error("No client is left for \"{name}\": all {} are in use", DirtyClient::COUNT)]
    TooManyClients {
        /// The name of the client that was to be registered.
        name: String,
    },
    /// The number or the name belongs to another client.
    #[error("\"{name}\" cannot be {client}, which is \"{taken}\"")]
    ClientTaken {
        /// The name of the client that was to be registered.
        name: String,
        /// The client that is in the way.
        client: DirtyClient,
        /// The name of the client that is in the way.
        taken: String,
    },
    /// The operating system has no addresses for a bitmap, or the process may not lock as much
    /// (`RLIMIT_MEMLOCK`, after `mlockall`).
    #[error("There is no memory for a bitmap of {pages} pages: {kind}")]
    NoMemory {
        /// Pages that the bitmap should have room for.
        pages: u64,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// Somebody has claimed the client's bits, so nobody else takes them, or drops them by
    /// switching the client off.
    #[error("Client {client}'s bits are claimed, and only the claim can take them")]
    Claimed {
        /// The client asked for.
        client: DirtyClient,
    },
    /// The client logs nothing, so there is nothing to harvest.
    #[error("Client {client} is off, only {enabled} log here")]
    ClientOff {
        /// The client asked for.
        client: DirtyClient,
        /// Those that are on.
        enabled: ClientSet,
    },
}
