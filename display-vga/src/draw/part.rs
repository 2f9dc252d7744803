//! Which part of a picture to draw, and the buffers for it.

use ram_block::{DirtySnapshot, PageSize};

/// Which part of a picture to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DrawnPart<'a> {
    /// Everything, into a new surface: all of it is damage.
    Fresh,
    /// Everything, into a surface that shows another mode or state.
    All,
    /// The pixels of these pages of video memory; for text, all cells that changed.
    Dirty(&'a DirtySnapshot, PageSize),
}

/// Buffers that are reused from one picture to the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Bytes of video memory.
    pub(super) raw: Vec<u8>,
    /// Pixels of a line.
    pub(super) pixels: Vec<u8>,
}
