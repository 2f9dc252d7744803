//! Pixels of the surface's own format: what changed is copied, in as long pieces as there are.

use std::ops::Range;

use ram_block::{RamBlock, RamBlockError};

use crate::picture::surface::Surface;

/// Brings pixels up to date that lie in video memory as they do in the surface.
///
/// They are compared when they are added and copied when others follow that do not continue
/// them, or at the end: of a picture that changed all over it is one copy, which is faster than
/// one for each line. What the guest stores between the two is copied or not, and marks its
/// page, so that the next refresh looks at it again; all that is copied is in the damage, as
/// only what differed is.
pub(super) struct Copied<'a> {
    vram: &'a RamBlock,
    surface: &'a mut Surface,
    /// Where the bytes to be copied begin in video memory.
    from: u64,
    /// Where they belong in the surface.
    to: Range<usize>,
}

impl<'a> Copied<'a> {
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

    /// Copies what is left to be copied.
    pub(super) fn copy(&mut self) -> Result<(), RamBlockError> {
        let to = std::mem::take(&mut self.to);
        self.vram.read(self.from, &mut self.surface.own_mut()[to])
    }
}
