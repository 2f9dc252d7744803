//! From video memory to a surface: what a mode makes of bytes.

mod copied;
pub(crate) mod linear;
mod planes;
mod text;

use ram_block::{DirtySnapshot, PageSize, RamBlock, RamBlockError};

use crate::damage::Damage;
use crate::mode::{Kind, Mode};
use crate::registers::retrace::Blink;
use crate::surface::Surface;
use crate::text_screen::TextScreen;

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

/// What of a picture changes by itself, with time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blinks {
    /// The cursor is on the screen.
    pub(crate) cursor: bool,
    /// A character on the screen blinks.
    pub(crate) text: bool,
}

impl Blinks {
    /// How it looks at the moment: pictures of one phase are the same.
    pub(crate) fn phase(self, blink: Blink) -> [bool; 2] {
        [self.cursor && blink.cursor, self.text && blink.text]
    }

    /// Nanoseconds until something changes, if anything does.
    pub(crate) fn next(self, blink: Blink) -> Option<u64> {
        let cursor = self.cursor.then_some(blink.next_cursor);
        cursor.into_iter().chain(self.text.then_some(blink.next_text)).min()
    }
}

/// Draws modes; keeps what the next picture of the same mode can build on.
#[derive(Debug, Default)]
pub(crate) struct Painter {
    text: text::TextPainter,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Buffers {
    /// Bytes of video memory.
    raw: Vec<u8>,
    /// Pixels of a line.
    pixels: Vec<u8>,
}

impl Painter {
    /// What blinks of the picture of `mode` that was drawn last.
    pub(crate) fn blinks(&self, mode: &Mode) -> Blinks {
        if mode.is_text() { self.text.blinks } else { Blinks::default() }
    }

    /// The characters of the picture of `mode` that was drawn last, if it is a text.
    pub(crate) fn characters(&self, mode: &Mode) -> Option<TextScreen> {
        match &mode.kind {
            Kind::Text(text) => Some(self.text.characters(text, mode.height)),
            Kind::Planes(_) | Kind::Linear(_) => None,
        }
    }

    /// Draws into a surface of the mode's size with memory of its own, and adds what
    /// changed to `damage`. Returns how many bytes of video memory were read.
    pub(crate) fn draw(
        &mut self,
        vram: &RamBlock,
        mode: &Mode,
        blink: Blink,
        part: Part<'_>,
        surface: &mut Surface,
        damage: &mut Damage,
    ) -> Result<u64, RamBlockError> {
        match &mode.kind {
            Kind::Text(text) => self.text.draw(vram, text, blink, part, surface, damage),
            Kind::Planes(planes) => {
                planes::draw(vram, planes, part, surface, damage, &mut self.buffers)
            }
            Kind::Linear(linear) => {
                linear::draw(vram, linear, part, surface, damage, &mut self.buffers)
            }
        }
    }
}
