//! What is known of a block's pages, for both sides; it knows nothing of the stream.
//!
//! - `send_bitmap`: the pages that are still to be sent;
//! - `holes`: where blocks have contents, without looking at them.

pub(crate) mod holes;
pub(crate) mod send_bitmap;
