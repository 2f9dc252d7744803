//! State of a block's pages, for source and destination. Independent of the stream.
//!
//! - `send_bitmap`: the pages that are still to be sent;
//! - `holes`: where blocks are populated, found without reading the pages.

pub(crate) mod holes;
pub(crate) mod send_bitmap;
