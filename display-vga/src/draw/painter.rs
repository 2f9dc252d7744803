//! Draws a mode of any kind from video memory into a surface.

use ram_block::{RamBlock, RamBlockError};

use crate::draw::blinks::Blinks;
use crate::draw::part::{Buffers, DrawnPart};
use crate::draw::text::TextPainter;
use crate::draw::{linear, planes};
use crate::modes::mode::{Mode, ModeKind};
use crate::picture::damage::Damage;
use crate::picture::surface::Surface;
use crate::picture::text_screen::TextScreen;
use crate::registers::retrace::Blink;

/// Draws modes; keeps the state from which the next picture of the same mode is updated.
#[derive(Debug, Default)]
pub(crate) struct Painter {
    text: TextPainter,
    buffers: Buffers,
}

impl Painter {
    /// What blinks in the picture of `mode` that was drawn last.
    pub(crate) fn blinks(&self, mode: &Mode) -> Blinks {
        if mode.is_text() { self.text.blinks } else { Blinks::default() }
    }

    /// The characters of the picture of `mode` that was drawn last, if that is a text mode.
    pub(crate) fn characters(&self, mode: &Mode) -> Option<TextScreen> {
        match &mode.kind {
            ModeKind::Text(text) => Some(self.text.characters(text, mode.height)),
            ModeKind::Planes(_) | ModeKind::Linear(_) => None,
        }
    }

    /// Draws into a surface of the mode's size that has its own memory, and adds the changes to
    /// `damage`. Returns how many bytes of video memory were read.
    pub(crate) fn draw(
        &mut self,
        vram: &RamBlock,
        mode: &Mode,
        blink: Blink,
        part: DrawnPart<'_>,
        surface: &mut Surface,
        damage: &mut Damage,
    ) -> Result<u64, RamBlockError> {
        match &mode.kind {
            ModeKind::Text(text) => self.text.draw(vram, text, blink, part, surface, damage),
            ModeKind::Planes(planes) => {
                planes::draw(vram, planes, part, surface, damage, &mut self.buffers)
            }
            ModeKind::Linear(linear) => {
                linear::draw(vram, linear, part, surface, damage, &mut self.buffers)
            }
        }
    }
}
