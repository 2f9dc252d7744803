//! Which part of a picture to draw, and by way of which buffers.

use ram_block::{DirtySnapshot, PageSize};

/// Which part of a picture to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// Everything, into a surface that shows nothing yet.
    Fresh,
    /// Everything, into a surface that shows something else.
    All,
    /// What these pages of video memory show; and of a text, whatever else has changed.
    Dirty(&'a DirtySnapshot, PageSize),
}

/// What a picture is drawn by way of, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Bytes of video memory.
    pub(super) raw: Vec<u8>,
    /// Pixels of a line.
    pub(super) pixels: Vec<u8>,
}
