//! Copies changed pixels of the surface's own format, in pieces as long as possible.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use crate::picture::surface::Surface;

/// Updates pixels that have the same format in video memory and in the surface.
///
/// Pixels are compared when they are added. The bytes that differ are copied when the next
/// ones are not adjacent, or at the end: if the whole picture changed it is one copy, which is
/// faster than one for each line. A store between the comparison and the copy may be copied or
/// not; it marks its page, so that the next refresh draws it. Everything that is copied is in
/// the damage, as only bytes that differed are copied.
pub(super) struct RowCopy<'a> {
    vram: &'a RamBlock,
    surface: &'a mut Surface,
    /// The offset in video memory of the bytes to be copied.
    from: u64,
    /// Their range in the surface.
    to: Range<usize>,
}

impl<'a> RowCopy<'a> {
    pub(super) fn new(vram: &'a RamBlock, surface: &'a mut Surface) -> Self {
        Self { vram, surface, from: 0, to: 0..0 }
    }

    /// Adds `width` pixels of line `y` from column `x` on, which are at byte `from` of video
    /// memory. Returns the columns from the first that changed to the last.
    pub(super) fn add(
        &mut self,
        (x, y): (u32, u32),
        width: u32,
        from: u64,
    ) -> Result<Range<u32>, RamBlockError> {
        let at = self.surface.own_bytes(x, y, width);
        let differing = self.vram.difference(from, &self.surface.own()[at.clone()])?;
        if differing.is_empty() {
            return Ok(0..0);
        }
        let (columns, changed) = Surface::whole_pixels(x, &differing);
        let from = from + changed.start as u64;
        let to = at.start + changed.start..at.start + changed.end;
        if to.start == self.to.end && from == self.from + self.to.len() as u64 {
            self.to.end = to.end;
        } else {
            self.copy()?;
            (self.from, self.to) = (from, to);
        }
        Ok(columns)
    }

    /// Copies the pending bytes.
    pub(super) fn copy(&mut self) -> Result<(), RamBlockError> {
        let to = std::mem::take(&mut self.to);
        self.vram.read(self.from, &mut self.surface.own_mut()[to])
    }
}
